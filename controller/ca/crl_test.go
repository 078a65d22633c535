package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// house is the authorities of a plug-in.
type house struct{ root, middle, last *Root }

func newHouse(t *testing.T) house {
	t.Helper()
	template := func(name string) *x509.Certificate {
		c := authorityTemplate(name)
		c.KeyUsage |= x509.KeyUsageCRLSign
		return c
	}
	root := authority(t, template("root"), nil)
	middle := authority(t, template("middle"), root)
	return house{root, middle, authority(t, template("last"), middle)}
}

func (h house) fields() map[string][]byte {
	return map[string][]byte{
		PluginRootKey: h.root.certPEM, PluginCertKey: h.last.certPEM, PluginKeyKey: h.last.keyPEM,
		PluginChainKey: append(append([]byte{}, h.last.certPEM...), h.middle.certPEM...),
	}
}

func (h house) authorities() []*x509.Certificate {
	return []*x509.Certificate{h.last.cert, h.middle.cert, h.root.cert}
}

// crl of an authority, valid for a day at start.
func crl(t *testing.T, by *Root, change func(*x509.RevocationList), serials ...int64) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: start.Add(-time.Hour), NextUpdate: start.Add(24 * time.Hour)}
	for _, serial := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: start})
	}
	if change != nil {
		change(template)
	}
	signer := *by.cert
	signer.KeyUsage |= x509.KeyUsageCRLSign // so that one may be made that is not right
	if signer.SubjectKeyId == nil {
		signer.SubjectKeyId = []byte{1}
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, &signer, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: crlBlock, Bytes: der})
}

func extended(oid []int, critical bool) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: []byte{5, 0}})
	}
}

func TestCRLsAreRead(t *testing.T) {
	h := newHouse(t)
	lists, err := parseCRLs(append(crl(t, h.middle, nil, 0x1f, 0xabc, 0x1f), crl(t, h.root, nil)...), h.authorities(), start)
	if err != nil || len(lists) != 2 {
		t.Fatal(lists, err)
	}
	if got := strings.Join(lists[0].Serials, " "); got != "1f abc" || lists[0].Subject != "CN=middle" || !lists[0].Expires.Equal(h.middle.cert.NotAfter) {
		t.Errorf("%+v", lists[0])
	}
}

// TestCRLProblems: every mistake is named, in words that say what to do.
func TestCRLProblems(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	mute := authority(t, authorityTemplate("mute"), h.root) // without cRLSign
	stranger := authority(t, authorityTemplate("stranger"), nil)
	der, _ := pem.Decode(crl(t, h.last, nil))
	for title, c := range map[string]struct {
		data  []byte
		words string
	}{
		"nothing":                {[]byte(" \n"), "empty"},
		"garbage":                {[]byte("garbage"), "no PEM block"},
		"DER":                    {der.Bytes, "no PEM block"},
		"a certificate":          {h.last.certPEM, `"CERTIFICATE", not an X509 CRL`},
		"a broken list":          {pem.EncodeToMemory(&pem.Block{Type: crlBlock, Bytes: der.Bytes[:40]}), "cannot be read as an X.509 CRL"},
		"garbage after one":      {append(crl(t, h.last, nil), "x"...), "where list 2 should begin"},
		"two of one authority":   {append(crl(t, h.last, nil), crl(t, h.last, nil)...), "another one of"},
		"a stranger's":           {crl(t, stranger, nil), `signed by "CN=stranger", which is none of the authorities in ambit-ca-plugin: "CN=last", "CN=middle", "CN=root"`},
		"one with our name":      {crl(t, other.last, nil), "the signature is not by that key"},
		"who may not sign lists": {crl(t, mute, nil), "lacks cRLSign"},
		"expired":                {crl(t, h.last, func(l *x509.RevocationList) { l.NextUpdate = start.Add(-time.Minute) }), "good until"},
		"of the future":          {crl(t, h.last, func(l *x509.RevocationList) { l.ThisUpdate = start.Add(time.Hour) }), "begins only at"},
		"a delta":                {crl(t, h.last, extended(oidDeltaCRL, true)), "delta CRL"},
		"a part":                 {crl(t, h.last, extended(oidIssuingDistributionPoint, true)), "one distribution point"},
		"something critical":     {crl(t, h.last, extended([]int{1, 2, 3, 4}, true)), "critical extension 1.2.3.4"},
		"an indirect one": {crl(t, h.last, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: oidCertificateIssuer, Critical: true, Value: []byte{5, 0}}}
		}, 1), "indirect"},
	} {
		t.Run(title, func(t *testing.T) {
			lists, err := parseCRLs(c.data, append(h.authorities(), mute.cert), start)
			if title == "a stranger's" {
				_, err = parseCRLs(c.data, h.authorities(), start)
			}
			if err == nil {
				t.Fatalf("accepted: %+v", lists)
			}
			if !strings.Contains(err.Error(), c.words) {
				t.Errorf("%q, want ...%s...", err, c.words)
			}
		})
	}
}

// An issuer that is revoked is not changed to: the one in use goes on.
func TestARevokedPluginIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// What is to sign next is below the same authority, whose list names it.
		h := newHouse(t)
		client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: PluginSecretName, Namespace: system}, Data: h.fields()})
		r := newRegistry(t, client)
		defer r.resign()
		template := authorityTemplate("next")
		template.SerialNumber = big.NewInt(77)
		template.KeyUsage |= x509.KeyUsageCRLSign
		next := house{h.root, h.middle, authority(t, template, h.middle)}
		put := func(data map[string][]byte) {
			t.Helper()
			_, err := client.CoreV1().Secrets(system).Update(t.Context(), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: PluginSecretName, Namespace: system}, Data: data,
			}, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pass(2 * aStep)
		}
		data := h.fields()
		data[PluginCRLKey] = crl(t, h.middle, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: next.last.cert.SerialNumber, RevocationTime: start}}
		})
		put(data)
		if p := r.revoker.Problem(); p != nil {
			t.Fatal(p)
		}
		put(next.fields())
		p, ok := r.keeper.Problem().(*Problem)
		if !ok || p.Code != PluginInvalid || p.Field != PluginCertKey || !strings.Contains(p.Detail, "revoked") {
			t.Errorf("problem %v", r.keeper.Problem())
		}
		if chain := r.issue(t, webID)[0]; !chain[1].Equal(h.last.cert) {
			t.Errorf("signed by %s", chain[1].Subject)
		}
	})
}

// FuzzCRLs: whatever is in the field, nothing is read but lists of an authority's.
func FuzzCRLs(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if lists, err := parseCRLs(data, nil, start); err == nil {
			t.Errorf("read without an authority: %+v", lists)
		}
	})
}

// The plug-in's list is followed; what is wrong with a later one, or its absence,
// takes nothing back.
func TestThePluginsListIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: PluginSecretName, Namespace: system}, Data: h.fields()})
		r := newRegistry(t, client)
		defer r.resign()
		put := func(list []byte) {
			t.Helper()
			data := maps.Clone(h.fields())
			if list != nil {
				data[PluginCRLKey] = list
			}
			_, err := client.CoreV1().Secrets(system).Update(t.Context(), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: PluginSecretName, Namespace: system}, Data: data,
			}, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pass(aStep)
		}
		leaf := r.issue(t, webID)
		serial := leaf[0][0].SerialNumber
		revoking := func(number int64, change func(*x509.RevocationList)) []byte {
			return crl(t, h.last, func(l *x509.RevocationList) {
				l.ThisUpdate = l.ThisUpdate.Add(time.Duration(number) * time.Second)
				l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: start}}
				if change != nil {
					change(l)
				}
			})
		}
		expect := func(title string, revoked bool, code Code) {
			t.Helper()
			if got := r.isRevoked(t, leaf); got != revoked {
				t.Errorf("%s: revoked %v", title, got)
			}
			problem, _ := r.revoker.Problem().(*Problem)
			if code == "" && problem != nil || code != "" && (problem == nil || problem.Code != code || problem.Field != PluginCRLKey) {
				t.Errorf("%s: %v, want %q", title, problem, code)
			}
		}
		expect("without a list", false, "")
		put(crl(t, h.last, nil))
		expect("an empty list", false, "")
		put(revoking(10, nil))
		expect("a list", true, "")
		put([]byte("garbage"))
		expect("a malformed one", true, CRLInvalid)
		put(revoking(5, func(l *x509.RevocationList) { l.RevokedCertificateEntries = nil }))
		expect("an older one", true, CRLInvalid)
		put(crl(t, newHouse(t).last, nil))
		expect("somebody else's", true, CRLInvalid)
		put(nil)
		expect("none", true, CRLMissing)
		put(crl(t, h.middle, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: h.last.cert.SerialNumber, RevocationTime: start}}
		}))
		expect("one that revokes what signs", true, CRLInvalid)
		put(revoking(20, func(l *x509.RevocationList) { l.NextUpdate = start.Add(5 * time.Minute) }))
		expect("a newer one", true, "")
		pass(5 * time.Minute)
		expect("when it should have been succeeded", true, CRLStale)
		put(revoking(30, func(l *x509.RevocationList) { l.RevokedCertificateEntries = nil }))
		expect("a newer one without it", false, "")
	})
}
