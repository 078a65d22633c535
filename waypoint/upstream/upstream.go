// Package upstream finds endpoints of services and opens connections to them.
//
//	upstream.go  Open: choose, ask whether it may be, connect; another endpoint where
//	             one cannot be reached
//	dial.go      tunnels with the waypoint's own identity, plain TCP
//
// An endpoint of the mesh is reached by a tunnel to it, whose far end must have the
// endpoint's identity, with the client's address in the header Forwarded. Plain TCP is
// for endpoints that are published as taking no tunnels.
//
// Invariants: a decision for a tunnel is never followed by plaintext; whoever asks
// gets every endpoint judged that is connected to; every connection gives its lease
// back when it is closed or reset.
//
// Which endpoint is package balance's to choose, when one is left alone endpoints'.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	// maxEndpoints of a service are tried for one connection: enough for a rollout
	// or a node that went away, not for a service that is down.
	maxEndpoints = 3
	// endpointTimeout bounds one of them as long as others may follow.
	endpointTimeout = 3 * time.Second
	// openTimeout bounds all of them together.
	openTimeout = 10 * time.Second
)

// NoEndpoint: the service has no endpoint that may be used.
const NoEndpoint conns.Reason = "NoEndpoint"

// NotCaptured: the endpoint refuses plaintext, and takes no tunnels before its node
// has captured it.
const NotCaptured conns.Reason = "NotCaptured"

// Config of an Opener. All fields are required.
type Config struct {
	// Self is the waypoint's own pod.
	Self func() *workload.Workload
	// TLS makes the configuration with which the waypoint connects to a peer that is
	// one of expected.
	TLS TLS
	// Trust is asked again about the far ends of live tunnels.
	Trust       Trust
	Endpoints   *endpoints.Registry
	PoolMetrics *pool.Metrics
	Logger      *slog.Logger
}

// Opener opens connections to endpoints.
type Opener struct {
	cfg  Config
	pool *pool.Pool
}

// New makes an Opener; Close ends it.
func New(cfg Config) *Opener {
	o := &Opener{cfg: cfg}
	o.pool = pool.New(pool.Config{Dial: o.dialTunnel, Trust: peerTrust{cfg.Trust}, Metrics: cfg.PoolMetrics, Logger: cfg.Logger})
	return o
}

// Close opens no more, lets what is open end until ctx does, and then ends it.
func (o *Opener) Close(ctx context.Context) { o.pool.Close(ctx) }

// Want is a connection that is wanted.
type Want struct {
	Snapshot *workload.Snapshot
	// Service, one of whose endpoints it is to; nil if Endpoint is no service's.
	Service *workload.Service
	// Port of the service or, without one, of the endpoint.
	Port uint16
	// Endpoint, if not nil, is the only one that will do.
	Endpoint *workload.Workload
	// Prefer, if not nil, is the endpoint of the service that is taken if it can be used.
	Prefer *workload.Workload
	// Client, as the endpoint is to see it.
	Client netip.AddrPort
	// Admit judges an endpoint before it is connected to; an error, always a
	// *conns.Failure, ends the search.
	Admit func(w *workload.Workload, target netip.AddrPort) error
	// Reuse, if set, is asked for an endpoint that was chosen and admitted: if it
	// returns true, Open returns neither a connection nor an error.
	Reuse func(w *workload.Workload, target netip.AddrPort) bool
	// Avoid are the UIDs of endpoints that were tried before: others go first.
	Avoid []string
	// Asks: the connection is for requests. Its endpoint does well if it answers them, which
	// Answered and Unanswered of the connection say, and not by taking connections.
	Asks bool
}

// Stream is what a connection is made of: a *net.TCPConn or a tunnel's stream.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Conn is a connection to an endpoint.
type Conn struct {
	Stream
	Workload *workload.Workload
	Service  *workload.Service
	// Target is the endpoint's address and port, Via the tunnel's far end, if it is
	// in one.
	Target, Via netip.AddrPort

	opener *Opener
	lease  *endpoints.Lease
	once   sync.Once
}

// Close closes the connection; a tunnel's stream that is not over is reset by it.
func (c *Conn) Close() error {
	err := c.Stream.Close()
	c.once.Do(c.lease.End)
	return err
}

// Asked counts a request among what its endpoint has to do, until done is called, once.
func (c *Conn) Asked() (done func()) { return c.lease.Asked() }

// Answered says that the endpoint has answered a request.
func (c *Conn) Answered() { c.lease.Established() }

// Unanswered says that the endpoint took a request, as which want was opened, and failed
// to answer it. One that does so again and again is left alone.
func (c *Conn) Unanswered(want Want, why conns.Reason) {
	c.lease.Unanswered(string(why), func() []endpoints.Key { return c.opener.peers(want) })
}

// Undecided says that a request ended without an answer, and not because of the endpoint.
func (c *Conn) Undecided() { c.lease.Undecided() }

// Quiet tells whether nothing has come on the connection that was not read, its end included.
func (c *Conn) Quiet() bool {
	switch s := c.Stream.(type) {
	case interface{ Pending() bool }:
		return !s.Pending()
	case syscall.Conn:
		raw, err := s.SyscallConn()
		if err != nil {
			return false
		}
		quiet := false
		err = raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			quiet = errors.Is(err, unix.EAGAIN)
			return true // as it is now
		})
		return err == nil && quiet
	}
	return false
}

// OnDistrust has cut called once the far end of the connection's tunnel, if it is in
// one, is trusted no longer, and before the connection ends of it.
func (c *Conn) OnDistrust(cut func(error)) {
	if stream, ok := c.Stream.(*pool.Stream); ok {
		stream.OnDistrust(cut)
	}
}

// Reset ends the connection so that the endpoint sees a failure.
func (c *Conn) Reset() error {
	var err error
	switch s := c.Stream.(type) {
	case interface{ Reset() error }:
		err = s.Reset()
	case *net.TCPConn:
		s.SetLinger(0)
		err = s.Close()
	default:
		err = s.Close()
	}
	c.once.Do(c.lease.End)
	return err
}

// Open connects to an endpoint. Its error is always a *conns.Failure.
func (o *Opener) Open(ctx context.Context, want Want) (*Conn, error) {
	choice, lease, err := o.choose(want)
	if len(want.Avoid) > 0 && conns.ReasonOf(err) == NoEndpoint {
		want.Avoid = nil
		choice, lease, err = o.choose(want)
	}
	if err == nil && lease == nil {
		return nil, nil // what the caller has will do
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var failed error
	for tried := 1; ; tried++ {
		if tried > 1 {
			if choice, lease, err = o.choose(want); err == nil && lease == nil {
				return nil, nil
			}
		}
		if err != nil {
			if failed != nil {
				err = failed // without another endpoint, the first one's failure counts
			}
			return nil, err
		}
		conn, err := o.connect(ctx, want, choice, want.Endpoint == nil && tried < maxEndpoints)
		if err == nil {
			if want.Asks {
				lease.ForRequests()
			} else {
				lease.Established()
			}
			conn.opener, conn.lease = o, lease
			return conn, nil
		}
		if !mayLieWithEndpoint(err) || ctx.Err() != nil {
			lease.End()
			return nil, err
		}
		lease.Failed(string(conns.ReasonOf(err)), func() []endpoints.Key { return o.peers(want) })
		if failed == nil {
			failed = err
		}
		if want.Endpoint != nil || tried == maxEndpoints {
			return nil, failed
		}
		want.Avoid = append(slices.Clip(want.Avoid), choice.Workload.UID)
	}
}

// mayLieWithEndpoint tells whether another endpoint may do better.
func mayLieWithEndpoint(err error) bool {
	switch conns.ReasonOf(err) {
	case conns.ConnectFailed, conns.TunnelFailed, conns.TLSFailed, conns.Revoked, conns.TunnelRefused:
		return true
	}
	return false
}

// choose finds an endpoint that may be connected to, and counts the connection; no
// lease means that the caller has one.
func (o *Opener) choose(want Want) (balance.Choice, *endpoints.Lease, error) {
	for range ejectedMeanwhile {
		choice, err := o.pick(want)
		if err != nil {
			return choice, nil, err
		}
		if err := want.Admit(choice.Workload, choice.Target); err != nil {
			return choice, nil, err
		}
		if want.Reuse != nil && want.Reuse(choice.Workload, choice.Target) {
			return choice, nil, nil
		}
		lease, ok := o.cfg.Endpoints.Connect(endpoints.Key{UID: choice.Workload.UID, Target: choice.Target}, choice.Panic || want.Endpoint != nil)
		if ok {
			o.cfg.Endpoints.Picked(choice.Nearness.String(), choice.Panic)
			return choice, lease, nil
		}
	}
	return balance.Choice{}, nil, conns.Fail(NoEndpoint, errors.New("endpoints are ejected as soon as they are chosen"))
}

// ejectedMeanwhile is how often an endpoint is chosen anew that was ejected just then.
const ejectedMeanwhile = 3

func (o *Opener) pick(want Want) (balance.Choice, error) {
	if want.Endpoint != nil {
		return o.only(want)
	}
	choice, ok := balance.Choose(o.request(want), want.Snapshot, rand.Uint64N)
	if !ok {
		if w, awaited := balance.Awaited(o.request(want), want.Snapshot); awaited {
			return choice, notCaptured(w)
		}
		return choice, conns.Fail(NoEndpoint, fmt.Errorf("service %s has no usable endpoint for port %d", want.Service.Key, want.Port))
	}
	return choice, nil
}

// only is the one endpoint that will do.
func (o *Opener) only(want Want) (balance.Choice, error) {
	w, port := want.Endpoint, want.Port
	addr, ok := w.Address(o.cfg.Self().Addresses[0])
	if want.Service != nil {
		if port, ok = w.Target(want.Service.Key, want.Port); !ok {
			return balance.Choice{}, conns.Fail(NoEndpoint, fmt.Errorf("%s does not serve port %d of %s", w.UID, want.Port, want.Service.Key))
		}
	}
	if !ok {
		return balance.Choice{}, conns.Fail(NoEndpoint, fmt.Errorf("%s has no address of the waypoint's family", w.UID))
	}
	if w.Awaited(port) {
		return balance.Choice{}, notCaptured(w)
	}
	return balance.Choice{Workload: w, Target: netip.AddrPortFrom(addr, port), Nearness: balance.NearnessOf(o.cfg.Self(), w)}, nil
}

func notCaptured(w *workload.Workload) error {
	return conns.Fail(NotCaptured, fmt.Errorf("%s refuses plaintext, and its node %s has not captured it yet", w.UID, w.Node))
}

// request is as from the waypoint's place; a service that keeps its clients apart
// goes by the client's address.
func (o *Opener) request(want Want) balance.Request {
	source := o.cfg.Self()
	destination := netip.AddrPortFrom(source.Addresses[0], want.Port)
	if want.Service.Affinity != 0 {
		as := *source
		as.Addresses = []netip.Addr{want.Client.Addr()}
		source = &as
	}
	return balance.Request{Source: source, Service: want.Service, Destination: destination, Avoid: want.Avoid, Prefer: want.Prefer, Endpoints: o.cfg.Endpoints}
}

func (o *Opener) peers(want Want) []endpoints.Key {
	if want.Endpoint != nil {
		return nil
	}
	var all []endpoints.Key
	for uid, target := range balance.Peers(o.request(want), want.Snapshot) {
		all = append(all, endpoints.Key{UID: uid, Target: target})
	}
	return all
}
