package workload

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/api/mesh"
)

// parseBundle reads b, which the controller named name. A bundle without roots
// is refused: with it every peer would be.
func parseBundle(name string, b *mesh.TrustBundle) ([]*x509.Certificate, error) {
	if b.GetTrustDomain() == "" || b.GetTrustDomain() != name {
		return nil, fmt.Errorf("trust_domain: %q, want the resource's name", b.GetTrustDomain())
	}
	var roots []*x509.Certificate
	for i, text := range b.GetRoots() {
		root, err := parseRoot(text)
		if err != nil {
			return nil, fmt.Errorf("roots[%d]: %w", i, err)
		}
		roots = append(roots, root)
	}
	if len(roots) == 0 {
		return nil, errors.New("roots: empty")
	}
	return roots, nil
}

func parseRoot(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more than one PEM block")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseConfig(name string, c *mesh.Config) (meshConfig, error) {
	if name != ConfigName {
		return meshConfig{}, fmt.Errorf("name: want %q", ConfigName)
	}
	if c.GetTrustDomain() == "" {
		return meshConfig{}, errors.New("trust_domain: empty")
	}
	out := meshConfig{trustDomain: c.GetTrustDomain(), clusterID: c.GetClusterId()}
	var errs [2]error
	out.podRanges, errs[0] = parseRanges("pod_ranges", c.GetPodRanges())
	out.serviceRanges, errs[1] = parseRanges("service_ranges", c.GetServiceRanges())
	if err := errors.Join(errs[:]...); err != nil {
		return meshConfig{}, err
	}
	return out, nil
}

func parseRanges(field string, texts []string) (ranges []netip.Prefix, err error) {
	for i, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		ranges = append(ranges, prefix.Masked())
	}
	return ranges, nil
}
