package accept

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
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

// Exceeds is why a key may not have one more. It is a *conns.Failure.
func Exceeds[K comparable](c *quota.Counter[K], key K, reason conns.Reason, what string) error {
	return conns.Fail(reason, fmt.Errorf("%v has %d %s, as many as it may", key, c.Limit(), what))
}

// Enter counts a connection of a client that has proven who it is, until Leave.
// Its error is a *conns.Failure.
func (q *Quotas) Enter(client netip.Addr, id spiffe.ID) error {
	if !q.connectionsByAddress.Take(client) {
		return Exceeds(q.connectionsByAddress, client, conns.TooManyConnections, "connections")
	}
	if !q.connectionsByIdentity.Take(id) {
		q.connectionsByAddress.Give(client)
		return Exceeds(q.connectionsByIdentity, id, conns.TooManyConnections, "connections")
	}
	return nil
}

// Leave ends what Enter counted.
func (q *Quotas) Leave(client netip.Addr, id spiffe.ID) {
	q.connectionsByAddress.Give(client)
	q.connectionsByIdentity.Give(id)
}
