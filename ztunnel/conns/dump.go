package conns

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Entry is one live connection in a dump.
type Entry struct {
	Direction   Direction `json:"direction"`
	Transport   Transport `json:"transport"`
	Opened      time.Time `json:"opened"`
	Source      PeerEntry `json:"source"`
	Destination PeerEntry `json:"destination"`
	Tunnel      string    `json:"tunnel,omitempty"`
	Service     string    `json:"service,omitempty"`
	// In bytes, from client to server and back.
	ToServer int64 `json:"bytesToServer"`
	ToClient int64 `json:"bytesToClient"`
}

// PeerEntry is one side of a connection in a dump.
type PeerEntry struct {
	Address   string `json:"address,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Identity  string `json:"identity,omitempty"`
}

// Dump lists the live connections, oldest first.
func (r *Registry) Dump() []Entry {
	live := r.Live()
	out := make([]Entry, 0, len(live))
	for _, c := range live {
		e := Entry{
			Direction:   c.Direction,
			Transport:   c.Transport,
			Opened:      c.Started,
			Source:      c.Source.entry(),
			Destination: c.Destination.entry(),
			Tunnel:      text(c.Tunnel),
		}
		if c.Service != nil {
			e.Service = c.Service.Key
		}
		e.ToServer, e.ToClient = c.Bytes()
		out = append(out, e)
	}
	return out
}

func (p Peer) entry() PeerEntry {
	e := PeerEntry{Address: text(p.Addr)}
	if p.Workload != nil {
		e.Workload, e.Namespace = p.Workload.Name, p.Workload.Namespace
	}
	if p.Identity != (spiffe.ID{}) {
		e.Identity = p.Identity.String()
	}
	return e
}

func text(addr netip.AddrPort) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}
