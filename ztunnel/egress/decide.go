package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Protocol of a flow.
type Protocol uint8

const (
	// Other is what has no ports, or none that can be read.
	Other Protocol = iota
	TCP
	UDP
)

func (p Protocol) String() string { return [...]string{"other", "TCP", "UDP"}[p] }

// Flow is something that wants to leave.
type Flow struct {
	Protocol    Protocol
	Destination netip.AddrPort // never a mapped IPv4 address
	// Names that the destination has, in lower case and without the last dot.
	Names []string
}

// Outcome of a decision.
type Outcome uint8

const (
	// Refused: no exception lets it out.
	Refused Outcome = iota
	// Unknown: whether it may leave will be known when the missing policies are there.
	Unknown
	// Allowed: it may leave.
	Allowed
)

// Decision is what becomes of a flow.
type Decision struct {
	Outcome Outcome
	// Policies that refuse it, or are missing; none if it is allowed.
	Policies []string
	// WouldRefuse are policies on trial that would have refused it, if all on trial were in force.
	WouldRefuse []string
}

// Decide tells what becomes of a flow.
func (r Rules) Decide(f Flow) Decision {
	d := Decision{Outcome: Allowed}
	switch {
	case len(r.Missing) > 0:
		d.Outcome, d.Policies = Unknown, r.Missing
	case len(r.denying) > 0 && !anyExcepts(r.denying, f):
		d.Outcome, d.Policies = Refused, keys(r.denying)
	}
	if len(r.trial) > 0 && !anyExcepts(r.denying, f) && !anyExcepts(r.trial, f) {
		d.WouldRefuse = keys(r.trial)
	}
	return d
}

// Error says why a flow may not leave; nil if it may.
func (d Decision) Error(f Flow) error {
	switch d.Outcome {
	case Allowed:
		return nil
	case Unknown:
		return fmt.Errorf("whether the pod may reach %s outside the mesh is not known: EgressPolicy %s not received", f, strings.Join(d.Policies, ", "))
	}
	return fmt.Errorf("EgressPolicy %s does not let the pod reach %s outside the mesh", strings.Join(d.Policies, ", "), f)
}

func (f Flow) String() string {
	if len(f.Names) == 0 {
		return fmt.Sprintf("%s (%s)", f.Destination, f.Protocol)
	}
	return fmt.Sprintf("%s (%s, %s)", f.Destination, f.Protocol, strings.Join(f.Names, ", "))
}

func keys(policies []*workload.EgressPolicy) (all []string) {
	for _, p := range policies {
		all = append(all, p.Key)
	}
	return all
}

func anyExcepts(policies []*workload.EgressPolicy, f Flow) bool {
	return slices.ContainsFunc(policies, func(p *workload.EgressPolicy) bool {
		return slices.ContainsFunc(p.Exceptions, func(e workload.EgressException) bool { return excepts(&e, f) })
	})
}

// excepts tells whether an exception lets a flow out.
func excepts(e *workload.EgressException, f Flow) bool {
	switch {
	case !e.Prefix.IsValid() && e.Name == "" && len(e.Ports) == 0:
		return false // says nothing
	case e.Prefix.IsValid() && !e.Prefix.Contains(f.Destination.Addr()):
		return false
	case e.Name != "" && !slices.ContainsFunc(f.Names, e.MatchesName):
		return false
	case len(e.Ports) == 0:
		return true
	}
	return slices.ContainsFunc(e.Ports, func(p workload.EgressPort) bool {
		spoken := f.Protocol == TCP && p.TCP || f.Protocol == UDP && p.UDP
		return spoken && p.First <= f.Destination.Port() && f.Destination.Port() <= p.Last
	})
}
