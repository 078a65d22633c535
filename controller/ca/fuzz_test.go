package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// FuzzBearer: whatever a caller puts into his headers, what is taken for a token
// is one, of a sensible size, and was given exactly once.
func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc", "")
	f.Add("bearer  abc", "Bearer def")
	f.Add("Bearer ", "Basic YTpi")
	f.Add("Bearer\tabc", strings.Repeat("x", maxTokenBytes))
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, values := range [][]string{nil, {one}, {one, two}} {
			token, err := bearer(metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": values}))
			if err != nil {
				continue
			}
			if len(values) != 1 || token == "" || len(token) > maxTokenBytes || !strings.HasSuffix(one, token) {
				t.Fatalf("%q is taken for a token of %q", token, values)
			}
		}
	})
}

// FuzzReadReview: whatever an API server answers, who is believed to call is a
// service account's pod on a node, with all that names it.
func FuzzReadReview(f *testing.F) {
	for _, answer := range []authenticationv1.TokenReviewStatus{tokenOf(tunnel), tokenOf(cartPod), {}} {
		content, err := json.Marshal(answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var answer authenticationv1.TokenReviewStatus
		if json.Unmarshal(content, &answer) != nil {
			return
		}
		peer, err := readReview(answer)
		if err != nil {
			return
		}
		name := "system:serviceaccount:" + peer.Namespace + ":" + peer.ServiceAccount
		if !answer.Authenticated || answer.User.Username != name || strings.Contains(peer.Namespace+peer.ServiceAccount, ":") ||
			peer.Namespace == "" || peer.ServiceAccount == "" || peer.PodName == "" || peer.PodUID == "" || peer.Node == "" {
			t.Fatalf("%s makes %+v", content, peer)
		}
	})
}

// FuzzSigningRequest: whatever bytes ask to be signed, a key comes out of them only
// if the requester has it, and is strong enough, and asks for no other name.
func FuzzSigningRequest(f *testing.F) {
	identity, err := spiffe.New(trustDomain, "shop", "cart")
	if err != nil {
		f.Fatal(err)
	}
	request := func(template x509.CertificateRequest) string {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			f.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}))
	}
	own, other := &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/ns/shop/sa/cart"}, &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/ns/shop/sa/pay"}
	f.Add(request(x509.CertificateRequest{}))
	f.Add(request(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 0x02, 0x86, 0x00}}}}))
	f.Add(request(x509.CertificateRequest{URIs: []*url.URL{own}}))
	f.Add(request(x509.CertificateRequest{URIs: []*url.URL{own, other}, DNSNames: []string{"a"}}))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, csrPEM string) {
		key, err := readRequest(csrPEM, identity)
		if err != nil {
			return
		}
		if fault := checkPublicKey(key); fault != nil || len(csrPEM) > maxRequestBytes {
			t.Fatalf("a request of %d bytes is accepted: %v", len(csrPEM), fault)
		}
		block, _ := pem.Decode([]byte(csrPEM))
		parsed, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || parsed.CheckSignature() != nil {
			t.Fatalf("accepted without the key: %v", err)
		}
		if len(parsed.URIs) != 1 || parsed.URIs[0].String() != identity.String() {
			t.Fatalf("a request for %s is accepted for %s", parsed.URIs, identity)
		}
	})
}
