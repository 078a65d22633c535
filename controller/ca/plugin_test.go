package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"strings"
	"testing"
	"time"
)

// authorityTemplate is a certificate that may sign.
func authorityTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
}

// authority makes one below another, or a root.
func authority(t *testing.T, template *x509.Certificate, above *Root) *Root {
	t.Helper()
	certPEM, keyPEM := signed(t, template, above)
	cert, key := parsePEM(t, string(certPEM)), (*Root)(nil)
	signer, err := parseKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	key = &Root{cert: cert, key: signer, certPEM: certPEM, keyPEM: keyPEM}
	return key
}

// plugged returns the fields of a good Secret: root, intermediate, signing one.
func plugged(t *testing.T, change func(root, middle, last *x509.Certificate)) map[string][]byte {
	t.Helper()
	r, m, l := authorityTemplate("root"), authorityTemplate("middle"), authorityTemplate("last")
	if change != nil {
		change(r, m, l)
	}
	root := authority(t, r, nil)
	middle := authority(t, m, root)
	last := authority(t, l, middle)
	return map[string][]byte{
		PluginRootKey: root.certPEM, PluginCertKey: last.certPEM, PluginKeyKey: last.keyPEM,
		PluginChainKey: append(append([]byte{}, last.certPEM...), middle.certPEM...),
	}
}

func TestPluginIsAccepted(t *testing.T) {
	data := plugged(t, nil)
	for title, change := range map[string]func(map[string][]byte){
		"as it is":              func(map[string][]byte) {},
		"the root in the chain": func(d map[string][]byte) { d[PluginChainKey] = append(d[PluginChainKey], d[PluginRootKey]...) },
		"the signing one not": func(d map[string][]byte) {
			d[PluginChainKey] = []byte(strings.TrimPrefix(string(d[PluginChainKey]), string(d[PluginCertKey])))
		},
		"further fields are left": func(d map[string][]byte) { d["notes"] = []byte("x") },
	} {
		d := maps.Clone(data)
		change(d)
		issuer, problem := parsePlugin(d, trustDomain, start)
		if problem != nil {
			t.Errorf("%s: %v", title, problem)
			continue
		}
		if len(issuer.chain) != 2 || issuer.origin != pluggedIn {
			t.Errorf("%s: %d authorities below the root", title, len(issuer.chain))
		}
	}
	root := authority(t, authorityTemplate("root"), nil)
	direct := authority(t, authorityTemplate("last"), root)
	if _, problem := parsePlugin(map[string][]byte{PluginRootKey: root.certPEM, PluginCertKey: direct.certPEM, PluginKeyKey: direct.keyPEM}, trustDomain, start); problem != nil {
		t.Errorf("without a chain: %v", problem)
	}
}

// TestPluginProblems: every mistake is named, with the field that it is in.
func TestPluginProblems(t *testing.T) {
	good, other := plugged(t, nil), plugged(t, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := func() map[string][]byte {
		root := authority(t, authorityTemplate("root"), nil)
		template := authorityTemplate("weak")
		serial, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		template.SerialNumber = serial
		der, err := x509.CreateCertificate(rand.Reader, template, root.cert, rsaKey.Public(), root.key)
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{
			PluginRootKey: root.certPEM, PluginCertKey: []byte(encodeCertificate(der)),
			PluginKeyKey: pem.EncodeToMemory(&pem.Block{Type: rsaBlock, Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}),
		}
	}
	with := func(field string, value []byte) map[string][]byte {
		d := maps.Clone(good)
		d[field] = value
		return d
	}
	changed := func(change func(root, middle, last *x509.Certificate)) map[string][]byte { return plugged(t, change) }
	for title, c := range map[string]struct {
		data         map[string][]byte
		field, words string
	}{
		"no root":               {with(PluginRootKey, nil), PluginRootKey, "missing or empty"},
		"garbage for a root":    {with(PluginRootKey, []byte("garbage")), PluginRootKey, "no PEM block"},
		"two roots":             {with(PluginRootKey, append(good[PluginRootKey], other[PluginRootKey]...)), PluginRootKey, "2 certificates"},
		"a root that is none":   {with(PluginRootKey, good[PluginCertKey]), PluginRootKey, "not self-signed"},
		"no certificate":        {with(PluginCertKey, nil), PluginCertKey, "missing or empty"},
		"a key for certificate": {with(PluginCertKey, good[PluginKeyKey]), PluginCertKey, "PRIVATE KEY"},
		"trailing garbage":      {with(PluginCertKey, append(append([]byte{}, good[PluginCertKey]...), "x"...)), PluginCertKey, "no PEM block after certificate 1"},
		"no key":                {with(PluginKeyKey, nil), PluginKeyKey, "missing or empty"},
		"another's key":         {with(PluginKeyKey, other[PluginKeyKey]), PluginKeyKey, "not that of the certificate in ca-cert.pem"},
		"an encrypted key":      {with(PluginKeyKey, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})), PluginKeyKey, "ENCRYPTED"},
		"garbage for a key":     {with(PluginKeyKey, pem.EncodeToMemory(&pem.Block{Type: pkcs8Block, Bytes: []byte{1}})), PluginKeyKey, "does not parse"},
		"another's root":        {with(PluginRootKey, other[PluginRootKey]), PluginChainKey, "does not lead to the root"},
		"a gap in the chain":    {with(PluginChainKey, nil), PluginChainKey, "does not lead to the root"},
		"garbage for a chain":   {with(PluginChainKey, []byte("x")), PluginChainKey, "no PEM block"},
		"no authority": {changed(func(_, _, last *x509.Certificate) { last.IsCA, last.KeyUsage = false, x509.KeyUsageDigitalSignature }),
			PluginCertKey, "CA:TRUE"},
		"key usage":            {changed(func(_, _, last *x509.Certificate) { last.KeyUsage = x509.KeyUsageDigitalSignature }), PluginCertKey, "keyCertSign"},
		"a root's path length": {changed(func(root, _, _ *x509.Certificate) { root.MaxPathLen = 1 }), PluginRootKey, "path length is 1"},
		"a middle one's path length": {changed(func(_, middle, _ *x509.Certificate) { middle.MaxPathLenZero = true }),
			PluginChainKey, "path length is 0"},
		"expired":           {changed(func(_, _, last *x509.Certificate) { last.NotAfter = start.Add(-time.Minute) }), PluginCertKey, "expired"},
		"not yet valid":     {changed(func(_, _, last *x509.Certificate) { last.NotBefore = start.Add(time.Hour) }), PluginCertKey, "not valid before"},
		"an expired root":   {changed(func(root, _, _ *x509.Certificate) { root.NotAfter = start.Add(-time.Minute) }), PluginRootKey, "expired"},
		"an expired middle": {changed(func(_, middle, _ *x509.Certificate) { middle.NotAfter = start.Add(-time.Minute) }), PluginChainKey, "expired"},
		"a weak key":        {weak(), PluginCertKey, "weak key"},
		"for another domain": {changed(func(_, _, last *x509.Certificate) {
			last.PermittedURIDomains, last.PermittedDNSDomainsCritical = []string{"example.org"}, true
		}), PluginCertKey, "trust domain cluster.local"},
		"for servers only": {changed(func(_, middle, _ *x509.Certificate) {
			middle.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
			PluginCertKey, "not valid"},
	} {
		t.Run(title, func(t *testing.T) {
			issuer, problem := parsePlugin(c.data, trustDomain, start)
			if problem == nil {
				t.Fatalf("accepted: %v", issuer.cert.Subject)
			}
			if problem.Code != PluginInvalid || problem.Field != c.field || !strings.Contains(problem.Detail, c.words) {
				t.Errorf("%s: %s, want %s: ...%s...", problem.Field, problem.Detail, c.field, c.words)
			}
			if strings.Contains(problem.Detail, "BEGIN") {
				t.Error("the problem quotes what it is about")
			}
		})
	}
}
