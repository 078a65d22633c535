//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/jwt/jwttest"
)

const issuerName = "https://issuer.example"

// issuer publishes keys, in a namespace of its own, over TLS by a certificate of an authority.
func (p *place) issuer(keys string, by certified) {
	p.Helper()
	p.apply(pod(podOptions{name: "issuer", node: "n3", role: "issuer", env: []string{
		"{name: KEYS, value: '" + keys + "'}", "{name: CERTIFICATE, value: " + quoted(by.certificate) + "}", "{name: PRIVATE_KEY, value: " + quoted(by.key) + "}",
	}}) +
		service("issuer", "issuer", "{name: http, port: 8080}", "{name: https, port: 8443}"))
	p.ready("issuer")
	p.captured("issuer")
}

// certified is a certificate of a private authority, all of it in PEM.
type certified struct{ authority, certificate, key string }

// certify makes an authority, and has it vouch for a host.
func certify(t *testing.T, host string) certified {
	t.Helper()
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	make := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			parent, signer = template, key
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return key, certificate
	}
	rootKey, root := make(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "private"}, IsCA: true, BasicConstraintsValid: true}, nil, nil)
	key, leaf := make(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{host}}, root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return certified{text("CERTIFICATE", root.Raw), text("CERTIFICATE", leaf.Raw), text("PRIVATE KEY", der)}
}

// quoted is a string as YAML has it.
func quoted(s string) string {
	text, _ := json.Marshal(s) // strings can be
	return string(text)
}

// gone kills a pod at once.
func (p *place) gone(pods ...string) {
	p.Helper()
	p.in(append([]string{"delete", "pod", "--force", "--grace-period=0"}, pods...)...)
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// unsigned is a token by the algorithm `none`.
func unsigned(claims map[string]any) string {
	text, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + encode(text) + "."
}

// confused is signed by HMAC, and its secret is the key that everybody may know.
func confused(t *testing.T, key *ecdsa.PublicKey, keyID string, claims map[string]any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return jwttest.Sign(t, jose.HS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), keyID, string(text))
}

// A waypoint knows tokens by the keys that their issuer publishes, and by nothing else.
func TestTokensOfRequests(t *testing.T) {
	t.Parallel()
	issuers := newPlace(t, "e2e-tokens-issuer", modeLabel+"=ambient")
	first, second := jwttest.New(t, issuerName, "first"), jwttest.New(t, issuerName, "second")
	private := certify(t, "issuer.e2e-tokens-issuer.svc.cluster.local")
	issuers.issuer(jwttest.Keys(t, first), private)
	p := waypointed(t, "e2e-tokens", "server")
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  targetRefs: [{kind: Service, name: server}]
  jwtRules:
  - issuer: ` + issuerName + `
    audiences: [cart]
    jwksUri: http://issuer.e2e-tokens-issuer.svc.cluster.local:8080/keys
    outputClaimToHeaders: [{header: X-User, claim: sub}, {header: X-Role, claim: role}]
---
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: who}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: ALLOW
  rules:
  - to: [{operation: {paths: [/echo/public]}}]
  - from: [{source: {requestPrincipals: ["` + issuerName + `/*"]}}]
    to: [{operation: {paths: [/echo/mine]}}]
  - to: [{operation: {paths: [/echo/admin]}}]
    when: [{key: "request.auth.claims[role]", values: [admin]}]
  - to: [{operation: {paths: [/echo/owner]}}]
    condition: request.auth.claims.sub == request.headers['x-owner']
`)
	p.inForce("requestauthentications.ambit.mesh/tokens", "authorizationpolicies.ambit.mesh/who")

	const at = "http://server:8080/echo/"
	cart := map[string]any{"aud": "cart", "sub": "ann", "role": "user"}
	with := func(more map[string]any) map[string]any {
		claims := map[string]any{}
		for _, each := range []map[string]any{cart, more} {
			for name, value := range each {
				claims[name] = value
			}
		}
		return claims
	}
	whole := with(map[string]any{"iss": issuerName, "exp": time.Now().Add(time.Hour).Unix()})
	good, admin := bearer(first.Token(cart)), bearer(first.Token(with(map[string]any{"role": "admin"})))
	forged := []string{"X-User", "root", "x_user", "root", "X-Role", "admin"}
	table := []struct {
		name string
		want int
		request
	}{
		{"without a token, what is for everybody", 200, get(at+"public", forged...)},
		{"without a token, what is for who has one", 403, get(at+"mine", forged...)},
		{"a good one", 200, get(at+"mine", append(forged, good...)...)},
		{"a good one, for another role", 403, get(at+"admin", append(forged, good...)...)},
		{"the role", 200, get(at+"admin", admin...)},
		{"the owner", 200, get(at+"owner", append([]string{"X-Owner", "ann"}, good...)...)},
		{"another owner", 403, get(at+"owner", append([]string{"X-Owner", "bob"}, good...)...)},
		{"no owner, which the condition asks for", 403, get(at+"owner", good...)},
		{"expired", 401, get(at+"public", bearer(first.Token(with(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})))...)},
		{"for others", 401, get(at+"public", bearer(first.Token(with(map[string]any{"aud": "till"})))...)},
		{"of another issuer", 401, get(at+"public", bearer(first.Token(with(map[string]any{"iss": "https://other.example"})))...)},
		{"of a key that is not published", 401, get(at+"public", bearer(second.Token(cart))...)},
		{"alg none", 401, get(at+"public", bearer(unsigned(whole))...)},
		{"HS256 with the public key", 401, get(at+"public", bearer(confused(t, first.Public(), "first", whole))...)},
		{"no token", 401, get(at+"public", bearer("nonsense")...)},
		{"two tokens", 400, get(at+"public?access_token="+first.Token(cart), good...)},
	}
	var all []request
	for _, c := range table {
		all = append(all, c.request)
	}
	for i, a := range p.ask("client", all...) {
		c := table[i]
		if a.Status != c.want {
			t.Errorf("%s: answered with %d, want %d: %s%s", c.name, a.Status, c.want, a.Body, a.Error)
			continue
		}
		if c.want != 200 {
			continue
		}
		got, err := a.echoed()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		user, role := "", ""
		switch {
		case c.name == "the role":
			user, role = "ann", "admin"
		case c.Header["Authorization"] != nil:
			user, role = "ann", "user"
		}
		if got.Header.Get("X-User") != user || got.Header.Get("X-Role") != role || len(got.Header.Values("X-User")) > 1 || got.Header["X_user"] != nil {
			t.Errorf("%s: the application is told of %q in the role %q, want %q, %q: %v", c.name, got.Header.Get("X-User"), got.Header.Get("X-Role"), user, role, got.Header)
		}
		if got.Header.Get("Authorization") != "" {
			t.Errorf("%s: the application got the token", c.name)
		}
	}

	// Keys are followed when they are rotated.
	put := request{Method: "PUT", URL: "http://issuer.e2e-tokens-issuer:8080/keys", Body: jwttest.Keys(t, second)}
	if a := p.ask("client", put)[0]; a.Status != 200 {
		t.Fatalf("rotate: %d %s %s", a.Status, a.Body, a.Error)
	}
	next := get(at+"mine", bearer(second.Token(cart))...)
	p.answered("the rotated key is followed", "client", 200, next)
	if a := p.ask("client", get(at+"mine", good...))[0]; a.Status != 401 {
		t.Errorf("a token of the key that is withdrawn was answered with %d", a.Status)
	}

	// Without the issuer, who has its keys goes on; who has none refuses, and says so.
	const tokens = "requestauthentications.ambit.mesh/tokens"
	issuers.gone("issuer")
	if a := p.ask("client", next)[0]; a.Status != 200 {
		t.Errorf("right after the issuer's end the keys are gone: %d %s", a.Status, a.Error)
	}
	p.in("delete", "pods", "-l", gatewayLabel, "--force", "--grace-period=0")
	p.in("rollout", "status", "deployment/waypoint", "--timeout=60s")
	p.answered("without a token, what is for everybody", "client", 200, get(at+"public"))
	p.answered("a waypoint that has no keys refuses", "client", 401, next)
	p.eventually("the status says so", func() error {
		if c := p.condition(tokens, "InForce"); !strings.HasPrefix(c, "False KeysMissing: ") || !strings.Contains(c, "e2e-tokens/waypoint") || !strings.Contains(c, "http://issuer.e2e-tokens-issuer.svc.cluster.local:8080/keys") {
			return fmt.Errorf("it says %q", c)
		}
		return nil
	})
	for range 5 {
		for i, a := range p.ask("client", next, get(at+"mine", good...)) {
			if a.Status != 401 {
				t.Fatalf("request %d without the issuer's keys was answered with %d: %s", i, a.Status, a.Body)
			}
		}
	}
	issuers.issuer(jwttest.Keys(t, second), private)
	p.answered("with the issuer back", "client", 200, next)
	p.inForce(tokens)

	// A certificate of an authority that is not public, and not named, is no issuer's.
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: RequestAuthentication
metadata: {name: untrusted}
spec:
  targetRefs: [{kind: Service, name: server}]
  jwtRules: [{issuer: "https://other.example", jwksUri: "https://issuer.e2e-tokens-issuer.svc.cluster.local:8443/keys"}]
`)
	p.eventually("the status names the certificate", func() error {
		if c := p.condition("requestauthentications.ambit.mesh/untrusted", "InForce"); !strings.Contains(c, "KeysMissing") || !strings.Contains(c, "certificate") {
			return fmt.Errorf("it says %q", c)
		}
		return nil
	})
	if a := p.ask("client", get(at+"public", bearer(jwttest.New(t, "https://other.example", "second").Token(nil))...))[0]; a.Status != 401 {
		t.Errorf("a token of whose issuer there are no keys was answered with %d", a.Status)
	}

	// Whose authority is named has its keys, and by another's word they are nobody's.
	const other = "https://other.example"
	byOther := get(at+"public", bearer(jwttest.New(t, other, "second").Token(nil))...)
	named := func(authority string) string {
		return `
apiVersion: ambit.mesh/v1alpha1
kind: RequestAuthentication
metadata: {name: untrusted}
spec:
  targetRefs: [{kind: Service, name: server}]
  jwtRules:
  - issuer: ` + other + `
    jwksUri: https://issuer.e2e-tokens-issuer.svc.cluster.local:8443/keys
    certificateAuthority: ` + quoted(authority) + "\n"
	}
	p.apply(named(private.authority))
	p.inForce("requestauthentications.ambit.mesh/untrusted")
	published := get(at+"public", bearer(second.Token(map[string]any{"iss": other}))...)
	p.answered("the authority is named", "client", 200, published)
	if a := p.ask("client", byOther)[0]; a.Status != 401 {
		t.Errorf("a token of a key that is not published was answered with %d", a.Status)
	}
	p.apply(named(certify(t, "issuer.e2e-tokens-issuer.svc.cluster.local").authority))
	p.answered("another authority is named", "client", 401, published)
	p.eventually("the status names the authority", func() error {
		if c := p.condition("requestauthentications.ambit.mesh/untrusted", "InForce"); !strings.Contains(c, "KeysMissing") || !strings.Contains(c, "unknown authority") {
			return fmt.Errorf("it says %q", c)
		}
		return nil
	})
	p.apply(named("-----BEGIN CERTIFICATE-----\nMIIB"))
	p.eventually("the status names the field", func() error {
		if c := p.condition("requestauthentications.ambit.mesh/untrusted", "Accepted"); !strings.HasPrefix(c, "False Invalid: ") || !strings.Contains(c, "spec.jwtRules[0].certificateAuthority") {
			return fmt.Errorf("it says %q", c)
		}
		return nil
	})
	if a := p.ask("client", published)[0]; a.Status != 401 {
		t.Errorf("by an authority that cannot be read a token was answered with %d", a.Status)
	}
}
