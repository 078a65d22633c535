package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/jwt"
)

var now = time.Unix(1_800_000_000, 0)

var (
	rsaKey    = must(rsa.GenerateKey(rand.Reader, 2048))
	otherRSA  = must(rsa.GenerateKey(rand.Reader, 2048))
	p256      = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384      = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	edKey     = must(newEd25519())
	secret    = []byte(strings.Repeat("s", 32))
	allowAll  = append(append([]string{}, jwt.Asymmetric...), jwt.Symmetric...)
	goodClaim = fmt.Sprintf(`{"iss":"me","sub":"you","aud":["a","b"],"exp":%d}`, now.Unix()+3600)
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newEd25519() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// keys is a set of them as an issuer publishes it.
func keys(t testing.TB, all ...jose.JSONWebKey) []byte {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: all})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func public(id string, key crypto.Signer) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key.Public(), KeyID: id}
}

func sign(t testing.TB, algorithm jose.SignatureAlgorithm, key any, kid, claims string) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if kid != "" {
		options.WithHeader("kid", kid)
	}
	return signWith(t, algorithm, key, options, claims)
}

func signWith(t testing.TB, algorithm jose.SignatureAlgorithm, key any, options *jose.SignerOptions, claims string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// verify does all that makes a token count.
func verify(set []byte, text string, allowed ...string) error {
	if allowed == nil {
		allowed = jwt.Asymmetric
	}
	k, err := jwt.ParseKeys(set)
	if err != nil {
		return err
	}
	token, err := jwt.Parse(text)
	if err != nil {
		return err
	}
	if err := token.Verify(k, allowed); err != nil {
		return err
	}
	return token.Current([]string{"b"}, now)
}

func TestGoodTokens(t *testing.T) {
	set := keys(t, public("r", rsaKey), public("e", p256), public("f", p384), public("d", edKey), jose.JSONWebKey{Key: secret, KeyID: "s"})
	for _, c := range []struct {
		algorithm jose.SignatureAlgorithm
		key       any
		kid       string
		allowed   []string
	}{
		{jose.RS256, rsaKey, "r", nil}, {jose.RS512, rsaKey, "r", nil}, {jose.PS256, rsaKey, "r", nil}, {jose.RS256, rsaKey, "", nil},
		{jose.ES256, p256, "e", nil}, {jose.ES384, p384, "f", nil}, {jose.ES384, p384, "", nil}, {jose.EdDSA, edKey, "d", nil},
		{jose.HS256, secret, "s", []string{"HS256"}},
	} {
		if err := verify(set, sign(t, c.algorithm, c.key, c.kid, goodClaim), c.allowed...); err != nil {
			t.Errorf("%s by key %q: %v", c.algorithm, c.kid, err)
		}
	}
}

// Each of these is refused, and would be accepted if one of the rules were missing.
func TestBadTokens(t *testing.T) {
	set := keys(t, public("r", rsaKey), public("e", p256), public("x", otherRSA))
	good := sign(t, jose.RS256, rsaKey, "r", goodClaim)
	parts := strings.Split(good, ".")
	modulus := []byte(must(json.Marshal(public("r", rsaKey))))
	claims := func(text string) string { return sign(t, jose.RS256, rsaKey, "r", text) }
	for name, c := range map[string]struct {
		token   string
		says    string
		allowed []string
	}{
		"alg none":                 {encode(`{"alg":"none"}`) + "." + encode(goodClaim) + ".", "algorithm", allowAll},
		"alg none, with its kid":   {encode(`{"alg":"None","kid":"r"}`) + "." + encode(goodClaim) + "." + parts[2], "algorithm", allowAll},
		"HMAC by the public key":   {sign(t, jose.HS256, modulus, "r", goodClaim), "key that is not known", allowAll},
		"HMAC, not allowed":        {sign(t, jose.HS256, modulus, "r", goodClaim), "not allowed", nil},
		"not in the list":          {good, "not allowed", []string{"ES256"}},
		"another's key":            {sign(t, jose.RS256, otherRSA, "r", goodClaim), "signature", nil},
		"another's key, no kid":    {sign(t, jose.RS256, must(rsa.GenerateKey(rand.Reader, 2048)), "", goodClaim), "names none", nil},
		"unknown kid":              {sign(t, jose.RS256, rsaKey, "../../r", goodClaim), "key that is not known", nil},
		"kid of another kind":      {sign(t, jose.RS256, rsaKey, "e", goodClaim), "key that is not known", nil},
		"claims changed":           {parts[0] + "." + encode(strings.Replace(goodClaim, "you", "root", 1)) + "." + parts[2], "signature", nil},
		"no signature":             {parts[0] + "." + parts[1] + ".", "", nil},
		"two parts":                {parts[0] + "." + parts[1], "no token", nil},
		"three and a tail":         {good + ".x", "no token", nil},
		"a list of two":            {good + ", " + good, "no token", nil},
		"JSON":                     {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "no token", nil},
		"its own key":              {signWith(t, jose.RS256, must(rsa.GenerateKey(rand.Reader, 2048)), &jose.SignerOptions{EmbedJWK: true}, goodClaim), "names none", nil},
		"its own place of keys":    {signWith(t, jose.RS256, rsaKey, (&jose.SignerOptions{}).WithHeader("jku", "http://169.254.169.254/").WithHeader("kid", "y"), goodClaim), "key that is not known", nil},
		"critical extension":       {signWith(t, jose.RS256, rsaKey, (&jose.SignerOptions{}).WithHeader("crit", []string{"x"}).WithHeader("x", 1).WithHeader("kid", "r"), goodClaim), "extensions", nil},
		"two algorithms":           {encode(`{"alg":"RS256","alg":"none","kid":"r"}`) + "." + parts[1] + "." + parts[2], "no token", nil},
		"expired":                  {claims(fmt.Sprintf(`{"iss":"me","aud":"b","exp":%d}`, now.Unix()-61)), "expired", nil},
		"not yet":                  {claims(fmt.Sprintf(`{"iss":"me","aud":"b","nbf":%d}`, now.Unix()+61)), "not valid yet", nil},
		"expires in words":         {claims(`{"iss":"me","aud":"b","exp":"9999999999"}`), "claim exp", nil},
		"for others":               {claims(`{"iss":"me","aud":["c","bb"]}`), "not for here", nil},
		"for nobody":               {claims(`{"iss":"me"}`), "not for here", nil},
		"audience is an object":    {claims(`{"iss":"me","aud":{"b":true}}`), "claim aud", nil},
		"audience is null":         {claims(`{"iss":"me","aud":null}`), "claim aud", nil},
		"two subjects":             {claims(`{"iss":"me","aud":"b","sub":"you","sub":"root"}`), "duplicate", nil},
		"two of a claim, deep":     {claims(`{"iss":"me","aud":"b","x":{"y":{"z":1,"z":2}}}`), "duplicate", nil},
		"subject is a list":        {claims(`{"iss":"me","aud":"b","sub":["root"]}`), "claim sub", nil},
		"issuer is a number":       {claims(`{"iss":1,"aud":"b"}`), "claim iss", nil},
		"claims are a list":        {claims(`[]`), "claims", nil},
		"claims are null":          {claims(`null`), "claims", nil},
		"claims are no JSON":       {claims(`{"iss":"me",}`), "claims", nil},
		"claims are no UTF-8":      {claims("{\"iss\":\"me\",\"aud\":\"b\",\"sub\":\"\xff\"}"), "UTF-8", nil},
		"more after the claims":    {claims(goodClaim + goodClaim), "claims", nil},
		"huge":                     {good + strings.Repeat("A", jwt.MaxToken), "more than", nil},
		"nothing":                  {"", "no token", nil},
		"encrypted":                {strings.Repeat(parts[0]+".", 4) + parts[0], "no token", nil},
		"line breaks in signature": {good[:len(good)-4] + "\n" + good[len(good)-4:], "characters", nil},
	} {
		if err := verify(set, c.token, c.allowed...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, c.says)
		}
	}
	if err := verify(set, good); err != nil {
		t.Errorf("the one that all of these are made from: %v", err)
	}
}

// Clocks may be apart a little.
func TestLeeway(t *testing.T) {
	for claim, offset := range map[string]int64{"exp": -59, "nbf": 59} {
		token, err := jwt.Parse(sign(t, jose.RS256, rsaKey, "", fmt.Sprintf(`{"%s":%d}`, claim, now.Unix()+offset)))
		if err != nil {
			t.Fatal(err)
		}
		if err := token.Current(nil, now); err != nil {
			t.Errorf("%s %ds from now: %v", claim, offset, err)
		}
	}
}

// A key is used as its set says, or as its kind demands.
func TestKeysAreBoundToTheirUse(t *testing.T) {
	bound := public("r", rsaKey)
	bound.Algorithm = "PS256"
	encrypts := public("r", rsaKey)
	encrypts.Use = "enc"
	small := must(rsa.GenerateKey(rand.Reader, 2048))
	small.N.Rsh(small.N, 1025)
	wrong := public("e", p256)
	wrong.Algorithm = "ES384"
	token := sign(t, jose.RS256, rsaKey, "r", goodClaim)
	for name, c := range map[string]struct {
		set  []byte
		says string
	}{
		"another algorithm": {keys(t, bound), "not known"},
		"for encryption":    {keys(t, encrypts), "not for signatures"},
		"too short":         {keys(t, public("r", small)), "bits"},
		"a weak secret":     {keys(t, jose.JSONWebKey{Key: []byte("short"), KeyID: "r"}), "secret"},
		"not of its kind":   {keys(t, wrong), "not of such a key"},
		"operations":        {[]byte(strings.Replace(string(keys(t, public("r", rsaKey))), `"kty"`, `"key_ops":["encrypt"],"kty"`, 1)), "not for signatures"},
		"no keys":           {[]byte(`{"keys":[]}`), "no keys"},
		"no set":            {[]byte(`{}`), "no keys"},
		"a page":            {[]byte(`<html>`), "no set of keys"},
		"twice":             {[]byte(`{"keys":[],"keys":[]}`), "duplicate"},
		"too long":          {append(keys(t, public("r", rsaKey)), make([]byte, jwt.MaxKeySet)...), "more than"},
	} {
		if err := verify(c.set, token); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, c.says)
		}
	}
	// What is not known does not spoil the rest.
	mixed := strings.Replace(string(keys(t, public("r", rsaKey))), `{"keys":[`, `{"keys":[{"kty":"future","kid":"r"},`, 1)
	if err := verify([]byte(mixed), token); err != nil {
		t.Errorf("beside a key of a kind that is not known: %v", err)
	}
	// A key may be published with its private half: it is the public one that counts.
	if err := verify(keys(t, jose.JSONWebKey{Key: rsaKey, KeyID: "r"}), token); err != nil {
		t.Error(err)
	}
}

// Only where later keys may be others is asking for them worth it.
func TestKeyUnknown(t *testing.T) {
	set := must(jwt.ParseKeys(keys(t, public("r", rsaKey))))
	for kid, want := range map[string]bool{"r": false, "s": true, "": true} {
		token := must(jwt.Parse(sign(t, jose.RS256, otherRSA, kid, goodClaim)))
		if err := token.Verify(set, jwt.Asymmetric); err == nil || errors.Is(err, jwt.ErrKeyUnknown) != want {
			t.Errorf("kid %q: %v", kid, err)
		}
	}
}

// Whatever comes, nothing that was not signed is believed.
func FuzzToken(f *testing.F) {
	set := must(jwt.ParseKeys(keys(f, public("r", rsaKey), public("e", p256), jose.JSONWebKey{Key: secret, KeyID: "s"})))
	good := sign(f, jose.RS256, rsaKey, "r", goodClaim)
	f.Add(good)
	f.Add(encode(`{"alg":"none"}`) + "." + encode(goodClaim) + ".")
	f.Add(sign(f, jose.ES256, p256, "", `{"iss":"me","a":{"b":[1,true,null]}}`))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := jwt.Parse(text)
		if err != nil {
			return
		}
		token.Current([]string{"b"}, now)
		if token.Verify(set, allowAll) != nil {
			return
		}
		// Base64's last character has spare bits: what counts is what was signed.
		if token.Issuer() != "me" {
			t.Errorf("%q is believed", text)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(keys(f, public("r", rsaKey), public("e", p256), public("d", edKey)))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	token := must(jwt.Parse(encode(`{"alg":"HS256"}`) + "." + encode(goodClaim) + "." + encode("x")))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := jwt.ParseKeys(text); err == nil && token.Verify(k, allowAll) == nil {
			t.Error("a signature that nobody made is believed")
		}
	})
}
