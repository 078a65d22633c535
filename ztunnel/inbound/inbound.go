// Package inbound takes the connections that others open to a local pod.
//
// One [Listener] runs per captured pod:
//
//	tunnel.go     15008: what is asked for through a tunnel that was let in
//	plaintext.go  15006: plain TCP that was on its way to the application
//	local.go      what a pod of the same node opens, handed over in the process
//	limits.go     how much one peer may hold, of this pod and of the process
//	admit.go      is it for this pod, does policy admit it -> the application
//	forwarded.go  for whom a waypoint connects
//	loop.go       what comes back to where it came from
//	relay         both ways, until both halves close
//
// Plaintext that is not admitted is reset right after it was accepted, and not
// refused in connect(2): the kernel has completed the handshake by the time that
// there is a socket to ask about, and what was held on the way out (see outbound)
// is the mesh's own, while plaintext may come from anywhere. No byte of it is read.
//
// Invariants: all three ways pass the same admission, each with the identity
// that was proven on it or none, and are followed by policy from before their first
// byte; a tunnel's 200 means that the application has
// accepted; the application sees the client's address, taken from the
// connection, and from what a request says only if the peer is proven to be the
// waypoint that stands before the port; when Run returns, so has every
// goroutine it started.
//
// Redirecting is redirect's job, certificates are certs', letting tunnels in accept's.
package inbound

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/listen"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// App connects the pod's application as if client did.
type App interface {
	DialApp(ctx context.Context, client netip.Addr, dst netip.AddrPort) (*net.TCPConn, error)
}

// Policy decides whether connections are admitted, and for how long.
type Policy interface {
	// Admit decides on a connection that wants in: its source with the identity
	// that was proven, its destination the pod itself. It may wait, for a bounded
	// time, for what it needs to know. Its error is always a *conns.Failure.
	Admit(ctx context.Context, a *conns.Attempt) error
	// Follow cuts an established connection once it is no longer admitted, which
	// may be so already. forget is called when the connection is over.
	Follow(c *conns.Conn) (forget func())
}

// Config of a Listener. All fields are required.
type Config struct {
	HBONE     *net.TCPListener
	Plaintext *net.TCPListener
	App       App
	// TLS is what the pod's identity accepts tunnels with, by GetCertificate.
	TLS *tls.Config
	// Target is the pod that the Listener belongs to, from what its own node
	// knows of it. Nil is refused.
	Target func() *workload.Workload
	// Snapshot says who the peers are, for the record.
	Snapshot func() *workload.Snapshot
	Policy   Policy
	// Trust is asked again about the peers of live tunnels.
	Trust accept.Trust
	Conns *conns.Registry
	Relay *relay.Relay
	// Quotas are the process's, Share is the pod's in what all carry.
	Quotas *accept.Quotas
	Share  *quota.Share
	Logger *slog.Logger
	// DrainTimeout is how long connections may live on after Run's context ended.
	DrainTimeout time.Duration
}

// Listener takes the connections to one pod.
type Listener struct {
	cfg       Config
	hbone     *listen.Server
	plaintext *listen.Server
	loops     loops
	locals    locals
	tunnels   *accept.Server
	// unproven counts plaintext connections by their clients.
	unproven *quota.Counter[netip.Addr]
}

// New makes a Listener; Run is to be called once.
func New(cfg Config) *Listener {
	return &Listener{
		cfg:       cfg,
		hbone:     listen.New(cfg.HBONE, listen.Limit, cfg.Logger),
		plaintext: listen.New(cfg.Plaintext, listen.Limit, cfg.Logger),
		loops:     newLoops(),
		locals:    newLocals(),
		tunnels: accept.New(accept.Config{
			TLS: cfg.TLS, Trust: cfg.Trust, Quotas: cfg.Quotas, Target: cfg.Target, Conns: cfg.Conns, Logger: cfg.Logger, DrainTimeout: cfg.DrainTimeout,
		}),
		unproven: quota.NewCounter[netip.Addr](plaintextPerAddress),
	}
}

// Run takes connections until ctx ends, and then carries on those that live,
// for DrainTimeout at most. An error means that accepting had to stop.
func (l *Listener) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var tunnelErr, plaintextErr error
	wg.Go(func() {
		defer stop()
		tunnelErr = l.hbone.Run(ctx, l.cfg.DrainTimeout, func(draining, cut context.Context, raw *net.TCPConn, over func()) {
			defer over()
			l.tunnels.Serve(draining, cut, raw, l.serveRequest)
		})
	})
	wg.Go(func() {
		defer stop()
		plaintextErr = l.plaintext.Run(ctx, l.cfg.DrainTimeout, l.servePlaintext)
	})
	wg.Go(func() {
		<-ctx.Done()
		l.locals.drain(l.cfg.DrainTimeout)
	})
	var judging sync.WaitGroup
	judge, over := context.WithCancel(context.WithoutCancel(ctx))
	judging.Go(func() { l.tunnels.Judge(judge) })
	wg.Wait()
	over()
	judging.Wait()
	if tunnelErr != nil {
		return tunnelErr
	}
	return plaintextErr
}

// StopAccepting leaves new connections to whoever listens next.
func (l *Listener) StopAccepting() {
	l.hbone.StopAccepting()
	l.plaintext.StopAccepting()
}

// Cut ends all connections now.
func (l *Listener) Cut() {
	l.hbone.Cut()
	l.plaintext.Cut()
	l.locals.cutNow(listen.ErrDrained)
}
