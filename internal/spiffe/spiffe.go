// Package spiffe reads and writes the identities of workloads.
//
// An identity is one URI, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT,
// and has exactly one spelling: [Parse] accepts nothing that [ID.String] would
// not have written. Whoever compares two identities may therefore compare the
// structs, and whoever logs one logs what was checked.
//
// Invariants: no part is empty; no percent-encoding, user, port, query or
// fragment; a certificate carries exactly one URI name.
//
// Whether an identity may be trusted is not decided here: package certs
// verifies chains, policy decides what a verified identity may do.
package spiffe

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	scheme = "spiffe://"

	// Kubernetes names: a namespace is a DNS label, a service account a DNS
	// subdomain (RFC 1123).
	maxLabel     = 63
	maxSubdomain = 253
)

// ErrMalformed is wrapped by every error that [Parse], [New] and
// [FromCertificate] return.
var ErrMalformed = errors.New("malformed SPIFFE identity")

// ID is the identity of a workload. The zero ID is nobody's.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// New returns the identity made of the three parts, each checked.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	switch {
	case !isSubdomain(trustDomain):
		return ID{}, fmt.Errorf("%w: trust domain %q is not a lower-case DNS name", ErrMalformed, clip(trustDomain))
	case !isLabel(namespace):
		return ID{}, fmt.Errorf("%w: namespace %q is not a DNS label", ErrMalformed, clip(namespace))
	case !isSubdomain(serviceAccount):
		return ID{}, fmt.Errorf("%w: service account %q is not a lower-case DNS name", ErrMalformed, clip(serviceAccount))
	}
	return ID{TrustDomain: trustDomain, Namespace: namespace, ServiceAccount: serviceAccount}, nil
}

// Parse reads spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
func Parse(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, scheme)
	if !ok {
		return ID{}, fmt.Errorf("%w: %q does not begin with %s", ErrMalformed, clip(uri), scheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("%w: %q is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", ErrMalformed, clip(uri))
	}
	return New(parts[0], parts[2], parts[4])
}

// String returns the identity's URI; of the zero ID, the empty string.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return scheme + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// URL returns the identity's URI in the form that crypto/x509 takes.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

// IsZero reports whether id is nobody's.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes an ID readable in configuration dumps.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// isLabel reports whether s is a DNS label in lower case (RFC 1123 section 2.1).
func isLabel(s string) bool {
	if len(s) == 0 || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// isSubdomain reports whether s is dot-separated DNS labels in lower case.
func isSubdomain(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

// clip keeps a hostile name from filling a log line.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
