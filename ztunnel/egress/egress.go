// Package egress decides what pods may reach outside the mesh: whatever is neither a pod nor a Service that the mesh knows.
//
//	egress.go   Of: what the policies of a pod say, from a snapshot
//	decide.go   Decide: (rules, flow) -> allowed, refused, or not to be told yet
//	names.go    Names: which names the addresses that a pod asked for have, and until when
//	allow.go    Allowances: the same rules for what only the kernel sees, as addresses and ports
//	pod.go      Pod: all of it for one pod
//	trial.go    Trials: what policies on trial would refuse, counted and in the log
//
// Where policies deny, nothing leaves that none of those that deny excepts; where one of them is missing, or could not be read,
// nothing leaves at all. So it is for a pod of which nothing is known yet, if something of its namespace may be denied.
//
// Invariants: Decide is pure; an exception lets nothing out but what it says; to remove one, or to forget a name, lets out
// nothing that was not let out before; policies on trial are reported, and decide nothing.
//
// What belongs to the mesh is route's to know, who answers for names dns', dropping what is refused the kernel's.
package egress

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Rules are what the policies of one pod say. They never change.
type Rules struct {
	// Missing are policies that have not come, or could not be read: as long as there are any, nothing may leave.
	Missing []string

	denying []*workload.EgressPolicy
	trial   []*workload.EgressPolicy // that would deny
}

// unknownWorkload stands for the policies of a pod of which nothing is known.
const unknownWorkload = "those of a pod that the controller has not told of"

// unreadableWorkload stands for those that may have been added to a pod's by what cannot be read.
const unreadableWorkload = "those of a pod of which what the controller said last could not be read"

// Of returns what decides on w's way out. w is a pod as its own node knows it: what policies it has, the controller says.
func Of(s *workload.Snapshot, w *workload.Workload) Rules {
	published, ok := s.WorkloadByUID(w.UID)
	if !ok || !same(published, w) {
		if s.Namespace(w.Namespace).EgressDenied {
			return Rules{Missing: []string{unknownWorkload}}
		}
		return Rules{}
	}
	var r Rules
	policies, missing := s.EgressPolicies(published)
	r.Missing = missing
	if s.Unreadable(w.UID) && s.Namespace(w.Namespace).EgressDenied {
		r.Missing = append(r.Missing, unreadableWorkload)
	}
	for _, p := range policies {
		switch {
		case !p.Deny:
		case p.DryRun:
			r.trial = append(r.trial, p)
		default:
			r.denying = append(r.denying, p)
		}
	}
	return r
}

// same tells whether what was published under a pod's name is that pod, not one of before.
func same(published, own *workload.Workload) bool {
	if published == own {
		return true
	}
	for _, ip := range own.Addresses {
		if slices.Contains(published.Addresses, ip) {
			return published.Identity == own.Identity
		}
	}
	return false
}

// Restrict tells whether anything is refused.
func (r Rules) Restrict() bool { return len(r.Missing) > 0 || len(r.denying) > 0 }

// Denying are the keys of the policies that deny.
func (r Rules) Denying() []string { return keys(r.denying) }

// Trial are the keys of the policies that deny on trial.
func (r Rules) Trial() []string { return keys(r.trial) }

// Tried are the rules as if the policies on trial were in force too; those that are missing are left out.
func (r Rules) Tried() Rules { return Rules{denying: slices.Concat(r.denying, r.trial)} }

// Equal tells whether both say the same, of the same policies.
func (r Rules) Equal(other Rules) bool {
	return slices.Equal(r.Missing, other.Missing) && slices.Equal(r.denying, other.denying) && slices.Equal(r.trial, other.trial)
}
