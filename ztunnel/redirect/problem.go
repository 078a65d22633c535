package redirect

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Code names what a node lacks. It appears in `ambit check` and in the status of pods.
type Code string

const (
	BPFFSMissing      Code = "BPFFSMissing"
	Cgroup2Missing    Code = "Cgroup2Missing"
	SkLookupMissing   Code = "SkLookupMissing"
	CapabilityMissing Code = "CapabilityMissing"
	HostNetNSMissing  Code = "HostNetNSMissing"
	PinsUnusable      Code = "PinsUnusable"
	// HoldMissing: pods are captured, and see in connect(2) what ztunnel's listener says.
	HoldMissing Code = "HoldMissing"
	// GuardMissing: a strict pod can send past ztunnel where the guard is not.
	GuardMissing Code = "GuardMissing"
	// HookRemoved: somebody took a program of the node off; it is there again.
	HookRemoved Code = "HookRemoved"
	// PinsLost: the BPF file system was replaced; the pins are in the new one.
	PinsLost Code = "PinsLost"
	// KubeletMissing: who may pass the listeners is not known, or no longer sure.
	KubeletMissing Code = "KubeletMissing"
	// GuardRemoved: somebody took a guard off; it is there again.
	GuardRemoved Code = "GuardRemoved"
)

// A Problem is why this node cannot redirect, for the person who can mend it.
type Problem struct {
	Code   Code
	Detail string // a sentence: what was seen
	Fix    string // a sentence: what to do
	Err    error  // may be nil
}

func (p *Problem) Error() string {
	if p.Err == nil {
		return fmt.Sprintf("%s: %s", p.Code, p.Detail)
	}
	return fmt.Sprintf("%s: %s (%v)", p.Code, p.Detail, p.Err)
}

func (p *Problem) Unwrap() error { return p.Err }

// An AddressMismatch refuses to pair a pod with a network namespace that lacks one of its addresses.
type AddressMismatch struct {
	UID   string
	NetNS string // its path
	Want  []netip.Addr
	Have  []netip.Addr // on interfaces other than the loopback
}

func (m *AddressMismatch) Error() string {
	return fmt.Sprintf("pod %s has addresses %s, network namespace %s has %s", m.UID, join(m.Want), m.NetNS, join(m.Have))
}

func join(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	text := make([]string, len(addrs))
	for i, a := range addrs {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}

// A HostNamespace refuses to capture the network namespace of the node itself.
type HostNamespace struct {
	UID   string
	NetNS string // its path
}

func (h *HostNamespace) Error() string {
	return fmt.Sprintf("pod %s: network namespace %s is the node's own", h.UID, h.NetNS)
}
