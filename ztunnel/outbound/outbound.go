// Package outbound carries the connections that local pods open.
//
// One [Listener] runs per captured pod:
//
//	hold.go       a connection that is held: its upstream is established, and
//	              then it is let go on, or refused with the upstream's error
//	listener.go   accept; the original destination is the socket's own address
//	connect.go    route.Decide, asking the controller if need be -> upstream;
//	              of a service, another endpoint where one cannot be reached
//	leave.go      outside the mesh: whether policy lets the pod go there
//	endpoint.go   what a connection tells of its endpoint: there, failed, over
//	tunnel.go     a stream in a tunnel from the pod's pool
//	header.go     what a tunnel's request says about the connection
//	relay         both ways, until both halves close
//
// Invariants: where the decision is a tunnel or the short way to a pod of this
// node, that pod is reached in no other way, and another endpoint only as it is
// published itself; a connection that cannot go on is refused or reset
// before any byte is answered; what was established in vain is closed; a Listener reaches no credentials but its pod's;
// when Run returns, so has every goroutine it started.
//
// Choosing endpoints is route's job, ejecting them package endpoints', redirecting redirect's, policy the
// destination's but for the way out of the mesh, which is egress'.
package outbound

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/listen"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// Dialer connects from within the pod, from its own address, past the capture.
type Dialer interface {
	Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error)
}

// Local is the way to the pods that are captured on this node.
type Local interface {
	// Deliver asks target's own inbound side to connect its application at dst.
	// It fails if target is not captured here; the connection is then refused.
	Deliver(ctx context.Context, target *workload.Workload, src LocalSource, dst netip.AddrPort) (LocalConn, error)
}

// Trust says whose certificates are trusted now.
type Trust interface {
	// Trusts judges the peer of a tunnel by the handshake that it began with, and the
	// latest of the same peer. again is when to ask again, at the latest.
	Trusts(own, latest certs.Proof) (again time.Duration, err error)
	// Retires tells whether what was shown in a handshake is soon worth nothing.
	Retires(certs.Proof) bool
	// TrustChanged is closed once the answers may be others.
	TrustChanged() <-chan struct{}
}

// LocalSource is who opens a connection to a pod of the same node.
type LocalSource struct {
	Workload *workload.Workload
	Client   netip.AddrPort
}

// LocalConn is a connection to an application of this node, and the record of
// it that its own pod keeps.
type LocalConn interface {
	// TCP is the socket. Whoever closes it says so with End.
	TCP() *net.TCPConn
	// Moved counts bytes, in the direction from client to server and back.
	Moved(toServer, toClient int64)
	// Context ends when the target's side wants the connection cut.
	Context() context.Context
	End(reason conns.Reason, err error)
}

// Config of a Listener. All fields but Hold are required.
type Config struct {
	Listener *net.TCPListener
	Dialer   Dialer
	// Hold has take called with every connection before it comes to Listener; take
	// does not wait. Nil, or if it fails: connections are accepted at once.
	Hold func(take func(Held)) error
	// TLS makes the configuration, by GetClientCertificate, with which the pod's
	// identity connects to a peer that is one of expected.
	TLS func(expected ...spiffe.ID) *tls.Config
	// Trust is asked again about the far ends of live tunnels.
	Trust Trust
	// Source is the pod that the Listener belongs to, from what its own node
	// knows of it. Nil is refused.
	Source   func() *workload.Workload
	Snapshot func() *workload.Snapshot
	// Lookup asks the controller for an address; once it returns true, Snapshot
	// has the answer.
	Lookup func(ctx context.Context, addr netip.Addr) (found bool, err error)
	Local  Local
	// Egress is the pod's way out of the mesh.
	Egress *egress.Pod
	Conns  *conns.Registry
	Relay  *relay.Relay
	// Endpoints is what the node knows of endpoints, for all its pods.
	Endpoints   *endpoints.Registry
	PoolMetrics *pool.Metrics
	// Share is the pod's in what all carry.
	Share  *quota.Share
	Logger *slog.Logger
	// DrainTimeout is how long connections may live on after Run's context ended.
	DrainTimeout time.Duration
}

// Listener carries the connections that one pod opens.
type Listener struct {
	cfg    Config
	server *listen.Server
	pool   *pool.Pool

	preparations preparations
}

// New makes a Listener, and holds connections from here on; Run is to be called once.
func New(cfg Config) *Listener {
	l := &Listener{cfg: cfg, server: listen.New(cfg.Listener, listen.Limit, cfg.Logger)}
	l.preparations.byEnds, l.preparations.live = map[ends]*preparation{}, map[ends]int{}
	l.pool = pool.New(pool.Config{Dial: l.dialTunnel, Trust: peerTrust{cfg.Trust}, Metrics: cfg.PoolMetrics, Logger: cfg.Logger})
	if cfg.Hold != nil {
		if err := cfg.Hold(l.take); err != nil {
			cfg.Logger.Warn("connections are not held: the pod's applications do not see in connect(2) that nobody is there", "error", err)
		}
	}
	return l
}

// Run carries connections until ctx ends, and then those that live, for
// DrainTimeout at most. An error means that accepting had to stop.
func (l *Listener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, l.preparations.stop)
	defer stop()
	err := l.server.Run(ctx, l.cfg.DrainTimeout, l.serve)
	l.preparations.stop()
	l.preparations.running.Wait()
	// The connections are over, so no stream is open.
	l.pool.Close(context.Background())
	return err
}

// StopAccepting leaves new connections to whoever listens next.
func (l *Listener) StopAccepting() {
	l.preparations.stop()
	l.server.StopAccepting()
}

// Cut ends all connections now.
func (l *Listener) Cut() { l.server.Cut() }
