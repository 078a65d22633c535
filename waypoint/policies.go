package main

import (
	"errors"
	"fmt"
	"net/http"
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

// router goes to what was addressed, where no routes are attached to it.
type router struct{}

// Route is exchange.Router's.
func (router) Route(_ *workload.Snapshot, t *target.Target, _ target.Client, _ *exchange.Request) exchange.Plan {
	if t.Routed() {
		return exchange.Plan{Answer: &exchange.Answer{Status: http.StatusInternalServerError, Flag: exchange.Invalid, Detail: "routes are not carried out by this version"}}
	}
	return exchange.Plan{Service: t.Service, Port: t.Port}
}
