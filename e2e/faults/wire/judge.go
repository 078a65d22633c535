package wire

import "net/netip"

// Who is who among addresses: of the pods that are judged, and of those that
// have an excuse.
type Who struct {
	// Pods are the judged ones: every address that one of them had.
	Pods map[netip.Addr]bool
	// Strangers are applications outside the mesh that ask the judged ones in
	// plaintext. What they send is theirs. Where they are welcome, so is the answer.
	Strangers        map[netip.Addr]bool
	StrangersWelcome bool
	// Nodes are the kubelets' addresses, HealthPort where they ask.
	Nodes      map[netip.Addr]bool
	HealthPort uint16
	// Reused are addresses that pods outside of the trial had as well, after a power cut say,
	// APIServer what those ask and applications do not.
	Reused    map[netip.Addr]bool
	APIServer map[netip.AddrPort]bool
	// TunnelPort is where everything else has to go.
	TunnelPort uint16
}

// Verdict is what was counted.
type Verdict struct {
	// Captured went to or from the tunnel's port.
	Captured int
	// Plaintext is every other TCP packet of a judged pod, and everything that
	// bears the marker.
	Plaintext int
	// Examples are the first of the plaintext ones.
	Examples []Packet
}

const examples = 5

// Judge counts.
func (w Who) Judge(packets []Packet) (v Verdict) {
	for _, p := range packets {
		switch {
		case !w.Pods[p.Source.Addr()] && !w.Pods[p.Destination.Addr()]:
		case w.plaintext(p):
			if v.Plaintext++; len(v.Examples) < examples {
				v.Examples = append(v.Examples, p)
			}
		case w.tunnelled(p):
			v.Captured++
		}
	}
	return v
}

// tunnelled tells whether a packet is of a connection to the tunnel's port.
func (w Who) tunnelled(p Packet) bool {
	return !p.Fragment && !p.Options && !p.Marked && (p.Source.Port() == w.TunnelPort || p.Destination.Port() == w.TunnelPort)
}

func (w Who) plaintext(p Packet) bool {
	from, to := p.Source, p.Destination
	switch {
	case w.tunnelled(p):
		return false
	case w.Strangers[from.Addr()]:
		return false // what a stranger says is not the pod's
	case w.Strangers[to.Addr()]:
		return p.Marked && !w.StrangersWelcome // ztunnel may refuse a stranger, the application may not answer
	case w.Nodes[from.Addr()] && to.Port() == w.HealthPort, w.Nodes[to.Addr()] && from.Port() == w.HealthPort:
		return p.Marked || p.Fragment || p.Options
	case w.Reused[from.Addr()] && w.APIServer[to], w.Reused[to.Addr()] && w.APIServer[from]:
		return p.Marked
	}
	return true
}
