package workload

import (
	"net/netip"
	"slices"
	"strings"
)

// MutualTLSMode is how strictly plaintext is kept away from a workload.
type MutualTLSMode uint8

const (
	// Permissive: plaintext is accepted beside tunnels.
	Permissive MutualTLSMode = iota
	// StrictMutualTLS: nothing but tunnels, in either direction. Single ports may
	// be exempt from it inbound; the Authorizations say which.
	StrictMutualTLS
	// DisabledMutualTLS: plaintext is accepted, by the wish of somebody who said so.
	DisabledMutualTLS
)

func (m MutualTLSMode) String() string {
	switch m {
	case StrictMutualTLS:
		return "STRICT"
	case DisabledMutualTLS:
		return "DISABLE"
	}
	return "PERMISSIVE"
}

// Namespace is what a pod of a namespace is held to while its workload is not
// known. The zero value is that of a namespace that nobody said anything about.
type Namespace struct {
	// MutualTLS is the strictest mode that a workload of it may be in.
	MutualTLS MutualTLSMode
	// EgressDenied: a workload of it may be subject to a policy that denies its
	// way out.
	EgressDenied bool
}

// EgressPolicy decides what workloads may reach outside the mesh.
type EgressPolicy struct {
	// Key is namespace/name.
	Key string
	// Deny: nothing may leave but the Exceptions. Otherwise everything may.
	Deny       bool
	Exceptions []EgressException
	// DryRun: what it would refuse is counted and logged, and let pass.
	DryRun bool
}

// EgressException is something that a policy lets pass: to its destination, if
// it has one, and on its ports, if it has any.
type EgressException struct {
	// Prefix that the destination is in, if valid.
	Prefix netip.Prefix
	// Name that the destination has, if not empty: in lower case, without a
	// trailing dot, and without the `*.` of a wildcard.
	Name string
	// Wildcard: it is the names that end in `.Name`, not Name itself.
	Wildcard bool
	// Ports; none stand for every port of every protocol.
	Ports []EgressPort
}

// MatchesName tells whether the exception is for a name, in lower case and
// without a trailing dot.
func (e *EgressException) MatchesName(name string) bool {
	switch {
	case e.Name == "":
		return false
	case e.Wildcard:
		rest, ok := strings.CutSuffix(name, e.Name)
		return ok && len(rest) > 1 && rest[len(rest)-1] == '.'
	}
	return name == e.Name
}

// EgressPort is a range of ports.
type EgressPort struct {
	// TCP and UDP tell of which protocols; at least one is true.
	TCP, UDP bool
	// First to Last, both included.
	First, Last uint16
}

// Namespace is what is said of a namespace; the zero value if nothing is, and the
// strictest if that cannot be read: a former state may be wider.
func (s *Snapshot) Namespace(name string) Namespace {
	if s.rejects(NamespaceType, name) {
		return Namespace{MutualTLS: StrictMutualTLS, EgressDenied: true}
	}
	return s.namespaces[name].value
}

// Strict tells whether a workload is, and whether that is known. While what was
// said of it last cannot be read it is what the strictest of its namespace may be,
// unless it was strict before.
func (s *Snapshot) Strict(uid, namespace string) (strict, known bool) {
	w, ok := s.WorkloadByUID(uid)
	strict = ok && w.MutualTLS == StrictMutualTLS
	if s.Unreadable(uid) {
		return strict || s.Namespace(namespace).MutualTLS == StrictMutualTLS, true
	}
	return strict, ok
}

// Unreadable tells that what was said last of a workload could not be read: what is
// known of it, its policies included, is of before.
func (s *Snapshot) Unreadable(uid string) bool { return s.rejects(AddressType, uid) }

// EgressPolicy finds a policy by its key, namespace/name.
func (s *Snapshot) EgressPolicy(key string) (*EgressPolicy, bool) {
	p, ok := s.egress[key]
	return p.value, ok
}

// EgressPolicies are those that decide on w's way out; none let everything out.
// Of several, each that denies refuses what none of them that denies excepts.
// Those that are missing have not come yet, or could not be read: until they are
// there, nothing of w may leave.
func (s *Snapshot) EgressPolicies(w *Workload) (policies []*EgressPolicy, missing []string) {
	for _, key := range w.EgressPolicies {
		// A former state of what could not be read is none: what it was changed
		// to may be narrower.
		if p, ok := s.egress[key]; ok && !s.rejects(EgressPolicyType, key) {
			policies = append(policies, p.value)
		} else {
			missing = append(missing, key)
		}
	}
	return policies, missing
}

// Namespaces lists the names of those that something is said about, sorted.
func (s *Snapshot) Namespaces() []string { return sortedKeys(s.namespaces) }

// EgressPolicyKeys lists the keys of all policies, sorted.
func (s *Snapshot) EgressPolicyKeys() []string { return sortedKeys(s.egress) }

// rejects tells whether the last version of a resource could not be read.
func (s *Snapshot) rejects(typeURL, name string) bool {
	_, rejected := s.rejected[rejectionKey(typeURL, name)]
	return rejected
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
