// Package jwttest is an issuer of tokens, for tests.
package jwttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer signs tokens with one key.
type Issuer struct {
	Name, KeyID string

	t   testing.TB
	key *ecdsa.PrivateKey
}

// New makes an issuer with a key of its own.
func New(t testing.TB, name, keyID string) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{Name: name, KeyID: keyID, t: t, key: key}
}

// Public is the key by which the issuer's tokens are verified.
func (i *Issuer) Public() *ecdsa.PublicKey { return &i.key.PublicKey }

// Keys is a set of the issuers' keys.
func Keys(t testing.TB, all ...*Issuer) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, i := range all {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: i.key.Public(), KeyID: i.KeyID})
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Token is a good one of an hour, but for what changes say; a claim of nil is left out.
func (i *Issuer) Token(changes map[string]any) string {
	i.t.Helper()
	claims := map[string]any{"iss": i.Name, "sub": "you", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	return Sign(i.t, jose.ES256, i.key, i.KeyID, string(text))
}

// Sign claims, as they are written.
func Sign(t testing.TB, algorithm jose.SignatureAlgorithm, key any, keyID, claims string) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if keyID != "" {
		options.WithHeader("kid", keyID)
	}
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
