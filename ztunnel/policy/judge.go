package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// judgement of one connection by one snapshot.
type judgement struct {
	// refusal is why it is not let in; its reason is PolicyMissing if that may be
	// another one when more has come. Nil: it is let in.
	refusal *conns.Failure
	// policy that decided, if one did.
	policy *authz.Policy
	// wouldDeny are policies that are not in force.
	wouldDeny []*authz.Policy
}

func (j judgement) missing() bool { return j.refusal != nil && j.refusal.Reason == conns.PolicyMissing }

// rules are what connections to one workload are judged by.
type rules struct {
	snapshot *workload.Snapshot
	workload *workload.Workload
	policies workload.Policies
}

func rulesFor(s *workload.Snapshot, w *workload.Workload) rules {
	return rules{s, w, s.Policies(w)}
}

func (r *rules) version() workload.PolicyVersion { return r.snapshot.PolicyVersion(r.workload) }

// judge a connection to the workload.
func (r *rules) judge(a *conns.Attempt) judgement {
	if r.workload.Waypoint != nil && r.workload.WaypointAnnounced == nil && !toItself(a) && !isWaypoint(r.snapshot, r.workload.Waypoint, a.Source.Identity) {
		return judgement{refusal: conns.Fail(conns.WaypointBypassed, errors.New("the workload takes connections from its waypoint alone"))}
	}
	if uid := r.workload.UID; r.snapshot.Unreadable(uid) {
		return judgement{refusal: conns.Fail(conns.PolicyMissing, fmt.Errorf("what was said last of workload %s could not be read, so that nobody knows which policies apply", uid))}
	}
	if r.throughWaypoint(a) {
		// It has asked policy about the client, whom this side does not see.
		return judgement{}
	}
	d := r.policies.Decide(authz.Connection{
		Identity:    a.Source.Identity,
		Client:      a.Source.Addr.Addr(),
		Destination: a.Destination.Addr,
	})
	j := judgement{policy: d.Policy, wouldDeny: d.WouldDeny}
	switch {
	case d.Reason == authz.Denied:
		// Whatever comes, that stays.
		reason := conns.PolicyDenied
		if _, name, _ := strings.Cut(d.Policy.Name, "/"); strings.HasPrefix(name, waypointOnly) {
			reason = conns.WaypointBypassed
		}
		j.refusal = conns.Fail(reason, denied(d.Policy))
	case len(r.policies.Missing) > 0:
		j.policy = nil
		j.refusal = conns.Fail(conns.PolicyMissing, fmt.Errorf("policy %s applies to the workload and has not come", r.policies.Missing[0]))
	case !d.Allowed:
		j.refusal = conns.Fail(conns.PolicyDenied, fmt.Errorf("none of the policies that allow matches, such as %s", d.Policy.Name))
	}
	return j
}

// waypointOnly begins the names of the policies by which the controller keeps
// everybody but the waypoint away from what is behind it.
const waypointOnly = "waypoint_only"

// throughWaypoint tells whether a connection comes from a waypoint whose word is taken
// for the port.
func (r *rules) throughWaypoint(a *conns.Attempt) bool {
	if a.Source.Identity.IsZero() {
		return false
	}
	for _, waypoint := range r.snapshot.Speakers(r.workload, a.Destination.Addr.Port()) {
		if isWaypoint(r.snapshot, waypoint, a.Source.Identity) {
			return true
		}
	}
	return false
}

func denied(p *authz.Policy) error {
	if p.Err != nil {
		return fmt.Errorf("denied by policy %s, which could not be read: %w", p.Name, p.Err)
	}
	return fmt.Errorf("denied by policy %s", p.Name)
}

// published is what the controller says of the pod that a connection is for, if it
// is about that very pod: who it is and which addresses it has, its node knows.
func published(s *workload.Snapshot, a *conns.Attempt) (*workload.Workload, bool) {
	own := a.Destination.Workload
	w, ok := s.WorkloadByUID(own.UID)
	if !ok || w.Identity != own.Identity || !slices.Contains(w.Addresses, a.Destination.Addr.Addr()) {
		return nil, false
	}
	return w, true
}

// toItself tells that a pod connects to itself, which no waypoint is asked about.
func toItself(a *conns.Attempt) bool {
	return a.Transport == conns.Local && a.Source.Workload != nil && a.Source.Workload.UID == a.Destination.Workload.UID
}

// isWaypoint tells whether an identity is that of the waypoint.
func isWaypoint(s *workload.Snapshot, g *workload.Gateway, id spiffe.ID) bool {
	if id.IsZero() {
		return false
	}
	key := g.ServiceKey
	if key == "" {
		if w, ok := s.WorkloadByAddr(g.Address); ok {
			return w.Identity == id
		}
		service, ok := s.ServiceByAddr(g.Address)
		if !ok {
			return false
		}
		key = service.Key
	}
	if service, ok := s.Service(key); ok && slices.Contains(service.Identities, id) {
		return true
	}
	return slices.ContainsFunc(s.Endpoints(key), func(w *workload.Workload) bool { return w.Identity == id })
}
