package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

var errNoPolicies = errors.New("policies for requests are not judged by this version")

// policies decides by RequestPolicies.
type policies struct{}

// Connection is server.Policies'.
func (p policies) Connection(s *workload.Snapshot, t *target.Target, _ target.Client, endpoint *workload.Workload, _ netip.AddrPort) error {
	if err := p.judge(s, t.Binding.Policies); err != nil {
		return err
	}
	return p.judge(s, endpoint.WaypointPolicies)
}

// Request is exchange.Policies'.
func (p policies) Request(s *workload.Snapshot, t *target.Target, _ target.Client, _ *exchange.Request, endpoint *workload.Workload, _ netip.AddrPort) error {
	if endpoint == nil {
		return p.judge(s, t.Binding.Policies)
	}
	return p.judge(s, endpoint.WaypointPolicies)
}

func (policies) judge(s *workload.Snapshot, names []string) error {
	for _, name := range names {
		if _, ok := s.RequestPolicy(name); !ok {
			return conns.Fail(conns.PolicyMissing, fmt.Errorf("policy %s applies and has not come", name))
		}
		return conns.Fail(conns.PolicyDenied, errNoPolicies)
	}
	return nil
}
