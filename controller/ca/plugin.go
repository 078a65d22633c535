package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// PluginSecretName is the Secret with which an authority of one's own signs for
// the mesh. Its fields are those that the field's other meshes read.
const PluginSecretName = "ambit-ca-plugin"

// The fields of that Secret.
const (
	// PluginRootKey: the root, which the mesh trusts.
	PluginRootKey = "root-cert.pem"
	// PluginChainKey: the signing certificate's way to the root, the signing
	// certificate first or left out, the root last or left out. May be missing
	// when the root signed it.
	PluginChainKey = "cert-chain.pem"
	// PluginCertKey and PluginKeyKey: the signing certificate and its key.
	PluginCertKey = "ca-cert.pem"
	PluginKeyKey  = "ca-key.pem"
)

// parsePlugin reads an issuer from the fields of a Secret. The error is a
// *Problem without its object and fix.
func parsePlugin(data map[string][]byte, trustDomain string, now time.Time) (*Issuer, *Problem) {
	bad := func(field, format string, args ...any) *Problem {
		return &Problem{Code: PluginInvalid, Field: field, Detail: fmt.Sprintf(format, args...)}
	}
	roots, err := parseCertificates(data[PluginRootKey])
	if err != nil {
		return nil, bad(PluginRootKey, "%v", err)
	}
	if len(roots) != 1 {
		return nil, bad(PluginRootKey, "it holds %d certificates, exactly the one root is needed", len(roots))
	}
	root := roots[0]
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, bad(PluginRootKey, "the certificate is not self-signed, so it is no root: %v", err)
	}
	certs, err := parseCertificates(data[PluginCertKey])
	if err != nil {
		return nil, bad(PluginCertKey, "%v", err)
	}
	if len(certs) != 1 {
		return nil, bad(PluginCertKey, "it holds %d certificates, exactly the signing one is needed", len(certs))
	}
	cert := certs[0]
	key, err := parseKey(data[PluginKeyKey])
	if err != nil {
		return nil, bad(PluginKeyKey, "%v", err)
	}
	if !sameKey(cert.PublicKey, key.Public()) {
		return nil, bad(PluginKeyKey, "the key is not that of the certificate in %s", PluginCertKey)
	}
	chain, problem := pluginChain(data[PluginChainKey], cert, root)
	if problem != nil {
		return nil, problem
	}
	if err := pluginAuthority(root, len(chain)); err != nil {
		return nil, bad(PluginRootKey, "%v", err)
	}
	for n, above := range chain {
		field := PluginChainKey
		if n == 0 {
			field = PluginCertKey
		}
		if err := pluginAuthority(above, n); err != nil {
			return nil, bad(field, "%s: %v", above.Subject, err)
		}
		if p := checkValidity(above, now); p != nil {
			return nil, bad(field, "%s: %s", above.Subject, p.Detail)
		}
	}
	if p := checkValidity(root, now); p != nil {
		return nil, bad(PluginRootKey, "%s", p.Detail)
	}
	issuer := &Issuer{cert: cert, key: key, chain: chain, root: root, origin: pluggedIn}
	if err := issuer.rehearse(trustDomain, now); err != nil {
		return nil, bad(PluginCertKey, "what it signs for trust domain %s is not valid: %v", trustDomain, err)
	}
	return issuer, nil
}

// pluginChain orders the way from the signing certificate up to below the root.
func pluginChain(data []byte, cert, root *x509.Certificate) ([]*x509.Certificate, *Problem) {
	bad := func(format string, args ...any) *Problem {
		return &Problem{Code: PluginInvalid, Field: PluginChainKey, Detail: fmt.Sprintf(format, args...)}
	}
	if cert.Equal(root) {
		return nil, nil // the root signs itself
	}
	var above []*x509.Certificate
	if len(bytes.TrimSpace(data)) > 0 {
		all, err := parseCertificates(data)
		if err != nil {
			return nil, bad("%v", err)
		}
		above = slices.DeleteFunc(all, func(c *x509.Certificate) bool { return c.Equal(cert) || c.Equal(root) })
	}
	chain := append([]*x509.Certificate{cert}, above...)
	for n, below := range chain {
		next := root
		if n+1 < len(chain) {
			next = chain[n+1]
		}
		if err := below.CheckSignatureFrom(next); err != nil {
			return nil, bad("the chain does not lead to the root in %s: %q is not signed by %q: %v", PluginRootKey, below.Subject, next.Subject, err)
		}
	}
	return chain, nil
}

// pluginAuthority says why a certificate may not sign others; below is how many
// authorities stand between it and the leaf.
func pluginAuthority(cert *x509.Certificate, below int) error {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return errors.New("it is not a certificate authority's: basic constraints CA:TRUE is missing")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its key usage lacks certificate signing (keyCertSign)")
	case (cert.MaxPathLen > 0 || cert.MaxPathLenZero) && cert.MaxPathLen < below:
		return fmt.Errorf("its path length is %d, and %d authorities stand below it", cert.MaxPathLen, below)
	case cert.SignatureAlgorithm == x509.SHA1WithRSA || cert.SignatureAlgorithm == x509.ECDSAWithSHA1 || cert.SignatureAlgorithm == x509.MD5WithRSA:
		return fmt.Errorf("it is signed with %s, which is broken", cert.SignatureAlgorithm)
	}
	if err := checkPublicKey(cert.PublicKey); err != nil {
		return fmt.Errorf("weak key: %w", err)
	}
	return nil
}

// rehearse signs a leaf and verifies it as a peer does: what no check above
// names, such as name constraints for another trust domain or extended key
// usages, shows here.
func (i *Issuer) rehearse(trustDomain string, now time.Time) error {
	id := spiffe.ID{TrustDomain: trustDomain, Namespace: "ambit-system", ServiceAccount: "rehearsal"}
	leaf, err := i.sign(&x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, i.key.Public(), time.Minute, now)
	if err != nil {
		return err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.root)
	for _, cert := range i.chain {
		intermediates.AddCert(cert)
	}
	for _, usage := range leaf.ExtKeyUsage {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return err
		}
	}
	return nil
}

// pluginFix is what to do about a Secret that is not used.
func pluginFix(running bool) string {
	if running {
		return "correct that field; until then the mesh goes on with the issuer that it has"
	}
	return "correct that field, or delete the Secret to have the mesh manage a root of its own; until then nothing is signed"
}
