package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/server"
)

type certificate = x509.Certificate

func (w *waypoint) clientTLS(expected ...spiffe.ID) *tls.Config {
	return w.certs.ClientConfig(w.identity, expected...)
}

// policies decides by RequestPolicies.
type policies struct{}

// Connection is server.Policies'.
func (policies) Connection(s *workload.Snapshot, t *server.Target, _ server.Client, endpoint *workload.Workload, _ netip.AddrPort) error {
	for _, names := range [][]string{t.Binding.Policies, endpoint.WaypointPolicies} {
		for _, name := range names {
			if _, ok := s.RequestPolicy(name); !ok {
				return conns.Fail(conns.PolicyMissing, fmt.Errorf("policy %s applies and has not come", name))
			}
			return conns.Fail(conns.PolicyDenied, errNoPolicies)
		}
	}
	return nil
}
