package inbound

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/conns"
	"github.com/ambit-mesh/ambit/ztunnel/listen"
)

// Limits are how much of this process one peer may hold, whichever of its pods it
// connects to. A zero is the default.
type Limits struct {
	// HandshakesPerAddress and Handshakes are tunnels whose peers have not shown
	// who they are.
	HandshakesPerAddress, Handshakes              int
	TunnelsPerAddress, TunnelsPerIdentity         int
	ConnectionsPerAddress, ConnectionsPerIdentity int
}

const (
	// DefaultHandshakesPerAddress and DefaultHandshakes: an honest one takes
	// milliseconds, a thousand at once a second; each that stands still holds 15 KiB
	// for handshakeTimeout.
	DefaultHandshakesPerAddress = 2048
	DefaultHandshakes           = 4096
	// DefaultTunnelsPerAddress is twice what Ambit itself opens from one pod, to
	// all others together. One that is idle holds less than 30 KiB.
	DefaultTunnelsPerAddress = 2048
	// DefaultTunnelsPerIdentity is for an identity of many pods, such as a gateway's.
	DefaultTunnelsPerIdentity = 16 << 10
	// DefaultConnectionsPerAddress is more than a pod has ephemeral ports for
	// towards one address and port.
	DefaultConnectionsPerAddress = 64 << 10
	// DefaultConnectionsPerIdentity is what four such pods hold.
	DefaultConnectionsPerIdentity = 256 << 10
	// plaintextPerAddress leaves half of what a pod's listener takes to others: who
	// shows no identity is known by nothing but its address.
	plaintextPerAddress = listen.Limit / 2
)

// Quotas are what the peers of a process hold of it. All its pods share them.
type Quotas struct {
	handshakes            *quota.Door[netip.Addr]
	tunnelsByAddress      *quota.Counter[netip.Addr]
	tunnelsByIdentity     *quota.Counter[spiffe.ID]
	connectionsByAddress  *quota.Counter[netip.Addr]
	connectionsByIdentity *quota.Counter[spiffe.ID]
}

// NewQuotas makes quotas of which nothing is held.
func NewQuotas(l Limits) *Quotas {
	return &Quotas{
		handshakes:            quota.NewDoor[netip.Addr](cmp.Or(l.HandshakesPerAddress, DefaultHandshakesPerAddress), cmp.Or(l.Handshakes, DefaultHandshakes)),
		tunnelsByAddress:      quota.NewCounter[netip.Addr](cmp.Or(l.TunnelsPerAddress, DefaultTunnelsPerAddress)),
		tunnelsByIdentity:     quota.NewCounter[spiffe.ID](cmp.Or(l.TunnelsPerIdentity, DefaultTunnelsPerIdentity)),
		connectionsByAddress:  quota.NewCounter[netip.Addr](cmp.Or(l.ConnectionsPerAddress, DefaultConnectionsPerAddress)),
		connectionsByIdentity: quota.NewCounter[spiffe.ID](cmp.Or(l.ConnectionsPerIdentity, DefaultConnectionsPerIdentity)),
	}
}

// exceeds is why a key may not have one more. It is a *conns.Failure.
func exceeds[K comparable](c *quota.Counter[K], key K, reason conns.Reason, what string) error {
	return conns.Fail(reason, fmt.Errorf("%v has %d %s, as many as it may", key, c.Limit(), what))
}

// seat is what one connection holds, until leave.
type seat struct {
	client   netip.Addr
	identity spiffe.ID // zero in plaintext
}

// enter takes a seat. Its error is a *conns.Failure.
func (l *Listener) enter(s seat) error {
	byAddress := l.clients(s)
	if !byAddress.Take(s.client) {
		return exceeds(byAddress, s.client, conns.TooManyConnections, "connections")
	}
	byIdentity := l.cfg.Quotas.connectionsByIdentity
	proven := s.identity != (spiffe.ID{})
	if proven && !byIdentity.Take(s.identity) {
		byAddress.Give(s.client)
		return exceeds(byIdentity, s.identity, conns.TooManyConnections, "connections")
	}
	if !l.cfg.Share.Take() {
		byAddress.Give(s.client)
		if proven {
			byIdentity.Give(s.identity)
		}
		return conns.Fail(conns.Overloaded, errors.New("the node's tunnel carries nearly as much as it can, and the pod has its share of that"))
	}
	return nil
}

func (l *Listener) leave(s seat) {
	l.clients(s).Give(s.client)
	if s.identity != (spiffe.ID{}) {
		l.cfg.Quotas.connectionsByIdentity.Give(s.identity)
	}
	l.cfg.Share.Give()
}

// clients counts by address: for the process where the client has proven who it
// is, for the pod alone where it has not.
func (l *Listener) clients(s seat) *quota.Counter[netip.Addr] {
	if s.identity == (spiffe.ID{}) {
		return l.unproven
	}
	return l.cfg.Quotas.connectionsByAddress
}
