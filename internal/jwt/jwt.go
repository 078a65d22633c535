// Package jwt verifies JSON Web Tokens (RFC 7519) that are signed (RFC 7515).
//
//	jwt.go   a token -> who says so, and whether one of a set of keys signed it
//	keys.go  a set of keys, each with the algorithms that it may be used with
//
// What a token says of its own algorithm has to be one that the key fits and that is
// allowed for its issuer; keys or places of keys in a token are not heard, nor are
// extensions that a token calls critical. Of two claims, or fields of a header, of one
// name nobody knows which counts: such a token is none.
//
// Invariants: what Verify returned nil for was signed by one of the keys; everything
// here is a pure function, bounded by MaxToken and MaxKeySet.
//
// Signatures are go-jose's. Where tokens are found in requests, and keys on the network,
// is not decided here.
package jwt

import (
	"encoding/json/v2"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxToken is how long a token may be: more than servers take in a field.
	MaxToken = 16 << 10
	// Leeway is how far the clocks of an issuer and of a waypoint may be apart.
	Leeway = time.Minute
)

// alphabet of the compact form: RFC 7515 section 3.1. Decoders let more pass.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// Asymmetric are the algorithms whose keys an issuer need not share.
var Asymmetric = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Symmetric are those of a secret that whoever verifies could sign with.
var Symmetric = []string{"HS256", "HS384", "HS512"}

// known are all of them; none is not.
var known = func() (all []jose.SignatureAlgorithm) {
	for _, name := range slices.Concat(Asymmetric, Symmetric) {
		all = append(all, jose.SignatureAlgorithm(name))
	}
	return all
}()

// Known tells whether an algorithm can be allowed.
func Known(algorithm string) bool {
	return slices.Contains(known, jose.SignatureAlgorithm(algorithm))
}

var (
	// ErrKeyUnknown is wrapped by Verify's error if a later set of keys may have one.
	ErrKeyUnknown = errors.New("signed by a key that is not known")
	errSignature  = errors.New("the signature is not that of the key")
)

// Token is one as it came. Nothing that it says may be believed before Verify.
type Token struct {
	signed    *jose.JSONWebSignature
	algorithm jose.SignatureAlgorithm
	keyID     string
	claims    map[string]any
	audiences []string
}

// Parse reads a token in the compact form.
func Parse(text string) (*Token, error) {
	if len(text) > MaxToken {
		return nil, fmt.Errorf("more than %d bytes", MaxToken)
	}
	if strings.ContainsFunc(text, func(c rune) bool { return !strings.ContainsRune(alphabet, c) }) {
		return nil, errors.New("is no token: has characters that none has")
	}
	signed, err := jose.ParseSignedCompact(text, known)
	if err != nil {
		return nil, fmt.Errorf("is no token, or of an algorithm that is not known: %w", err)
	}
	if len(signed.Signatures) != 1 {
		return nil, fmt.Errorf("%d signatures, want 1", len(signed.Signatures))
	}
	header := signed.Signatures[0].Protected
	if _, ok := header.ExtraHeaders["crit"]; ok {
		return nil, errors.New("its header demands extensions")
	}
	t := &Token{signed: signed, algorithm: jose.SignatureAlgorithm(header.Algorithm), keyID: header.KeyID}
	if err := json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &t.claims); err != nil {
		return nil, fmt.Errorf("its claims: %w", err)
	}
	if t.claims == nil {
		return nil, errors.New("its claims: are no object")
	}
	return t, t.checkTypes()
}

// checkTypes of the claims that mean something here.
func (t *Token) checkTypes() error {
	for _, name := range []string{"iss", "sub", "azp"} {
		if v, ok := t.claims[name]; ok {
			if _, ok := v.(string); !ok {
				return fmt.Errorf("claim %s: is no text", name)
			}
		}
	}
	for _, name := range []string{"exp", "nbf"} {
		if v, ok := t.claims[name]; ok {
			if seconds, ok := v.(float64); !ok || math.IsNaN(seconds) || math.IsInf(seconds, 0) {
				return fmt.Errorf("claim %s: is no time", name)
			}
		}
	}
	switch aud := t.claims["aud"].(type) {
	case nil:
		if _, ok := t.claims["aud"]; ok {
			return errors.New("claim aud: is null")
		}
	case string:
		t.audiences = []string{aud}
	case []any:
		for _, v := range aud {
			text, ok := v.(string)
			if !ok {
				return errors.New("claim aud: has what is no text")
			}
			t.audiences = append(t.audiences, text)
		}
	default:
		return errors.New("claim aud: is neither text nor a list")
	}
	return nil
}

// Issuer that the token claims; empty for none.
func (t *Token) Issuer() string { return t.text("iss") }

// Subject of the token; empty for none.
func (t *Token) Subject() string { return t.text("sub") }

// Presenter is who it was made out to (azp); empty for nobody.
func (t *Token) Presenter() string { return t.text("azp") }

// Audiences whom it is meant for.
func (t *Token) Audiences() []string { return t.audiences }

// Claims are all of them, as encoding/json reads them. They must not be changed.
func (t *Token) Claims() map[string]any { return t.claims }

func (t *Token) text(name string) string {
	text, _ := t.claims[name].(string)
	return text
}

// Verify tells whether one of the keys signed the token, by an algorithm that is
// allowed. A token that names a key is not tried with others.
func (t *Token) Verify(keys *Keys, allowed []string) error {
	if !slices.Contains(allowed, string(t.algorithm)) {
		return fmt.Errorf("signed by %s, which is not allowed", t.algorithm)
	}
	found := false
	for _, k := range keys.keys {
		if t.keyID != "" && k.id != t.keyID {
			continue
		}
		if !slices.Contains(k.algorithms, t.algorithm) {
			continue
		}
		found = true
		if _, err := t.signed.Verify(k.material); err == nil {
			return nil
		}
	}
	switch {
	case found && t.keyID != "":
		return errSignature
	case found:
		return fmt.Errorf("%w: it names none", ErrKeyUnknown)
	}
	return ErrKeyUnknown
}

// Current tells whether the token is for its time, and for one of the audiences, if
// there are any.
func (t *Token) Current(audiences []string, now time.Time) error {
	at := float64(now.UnixMilli()) / 1000
	if exp, ok := t.claims["exp"].(float64); ok && at > exp+Leeway.Seconds() {
		return errors.New("it has expired")
	}
	if nbf, ok := t.claims["nbf"].(float64); ok && at < nbf-Leeway.Seconds() {
		return errors.New("it is not valid yet")
	}
	if len(audiences) > 0 && !slices.ContainsFunc(t.audiences, func(a string) bool { return slices.Contains(audiences, a) }) {
		return fmt.Errorf("it is for %q, not for here", t.audiences)
	}
	return nil
}
