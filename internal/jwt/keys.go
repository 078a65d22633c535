package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxKeySet is how long a set of keys may be: issuers have a handful.
	MaxKeySet = 256 << 10
	// maxKeys of a set: a token that names none is tried with each.
	maxKeys = 64
	// The sizes of RSA keys: what is shorter can be broken, what is longer takes long.
	minRSABits, maxRSABits = 2048, 8192
	// minSecret is the length of a key for HMAC: RFC 7518 section 3.2.
	minSecret = 32
)

// Keys is a set of them. It never changes.
type Keys struct{ keys []key }

// key is one, with what it may be used for.
type key struct {
	id         string
	material   any
	algorithms []jose.SignatureAlgorithm
}

// ParseKeys reads a JSON Web Key Set (RFC 7517). Keys that are not for signatures, or of
// a kind that is not known, are left out; a set of which nothing is left is an error.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > MaxKeySet {
		return nil, fmt.Errorf("more than %d bytes", MaxKeySet)
	}
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("is no set of keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, want at most %d", len(set.Keys), maxKeys)
	}
	out := &Keys{}
	var why error
	for i, raw := range set.Keys {
		k, err := parseKey(raw)
		if err != nil {
			why = errors.Join(why, fmt.Errorf("keys[%d]: %w", i, err))
			continue
		}
		out.keys = append(out.keys, k)
	}
	switch {
	case len(out.keys) > 0:
		return out, nil
	case why != nil:
		return nil, fmt.Errorf("has no key that can be used: %w", why)
	}
	return nil, errors.New("has no keys")
}

func parseKey(raw jsontext.Value) (key, error) {
	var uses struct {
		Operations []string `json:"key_ops"`
	}
	var k jose.JSONWebKey
	if err := json.Unmarshal(raw, &uses); err != nil {
		return key{}, err
	}
	if err := k.UnmarshalJSON(raw); err != nil {
		return key{}, err
	}
	if k.Use != "" && k.Use != "sig" || uses.Operations != nil && !slices.Contains(uses.Operations, "verify") {
		return key{}, errors.New("is not for signatures")
	}
	material := k.Key
	if _, secret := material.([]byte); !secret {
		material = k.Public().Key
	}
	fit, err := fitting(material)
	if err != nil {
		return key{}, err
	}
	if k.Algorithm != "" {
		if !slices.Contains(fit, jose.SignatureAlgorithm(k.Algorithm)) {
			return key{}, fmt.Errorf("alg: %s is not of such a key", k.Algorithm)
		}
		fit = []jose.SignatureAlgorithm{jose.SignatureAlgorithm(k.Algorithm)}
	}
	return key{id: k.KeyID, material: material, algorithms: fit}, nil
}

// fitting are the algorithms that a key can be used with: an algorithm is never what a
// token alone says.
func fitting(material any) ([]jose.SignatureAlgorithm, error) {
	switch k := material.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []jose.SignatureAlgorithm{jose.ES256}, nil
		case elliptic.P384():
			return []jose.SignatureAlgorithm{jose.ES384}, nil
		case elliptic.P521():
			return []jose.SignatureAlgorithm{jose.ES512}, nil
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}, nil
	case []byte:
		if len(k) < minSecret {
			return nil, fmt.Errorf("a secret of %d bytes, want at least %d", len(k), minSecret)
		}
		return []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512}, nil
	}
	return nil, errors.New("is of a kind that is not known")
}
