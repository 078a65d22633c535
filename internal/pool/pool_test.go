package pool

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConnectionsShareATunnel(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	for range streamsPerStripe {
		wg.Go(func() { r.echo(r.open()) })
	}
	wg.Wait()
	if n := r.dials.Load(); n != 1 {
		t.Errorf("%d dials for %d connections at once, want one", n, streamsPerStripe)
	}
	if n := testutil.ToFloat64(r.pool.cfg.Metrics.tunnels); n != 1 {
		t.Errorf("%v tunnels", n)
	}
}

// Another address or another set of identities is another tunnel; the order of
// the identities means nothing.
func TestWhatIsSharedByWhom(t *testing.T) {
	r := start(t)
	a, b := identity("a"), identity("b")
	at := netip.MustParseAddrPort("192.0.2.1:15008")
	for _, c := range []struct {
		target Target
		dials  int32
	}{
		{Target{at, []spiffe.ID{a, b}}, 1},
		{Target{at, []spiffe.ID{b, a, b}}, 1},
		{Target{at, []spiffe.ID{a}}, 2},
		{Target{netip.MustParseAddrPort("192.0.2.2:15008"), []spiffe.ID{a}}, 3},
	} {
		s, err := r.pool.Open(t.Context(), c.target, request)
		if err != nil {
			t.Fatal(err)
		}
		r.echo(s)
		if n := r.dials.Load(); n != c.dials {
			t.Errorf("%v: %d dials so far, want %d", c.target, n, c.dials)
		}
	}
}

func TestMoreStreamsThanATunnelTakes(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	for range 250 {
		wg.Go(func() { r.open() })
	}
	wg.Wait()
	if n := r.dials.Load(); n != maxStripes {
		t.Errorf("%d tunnels for 250 connections, want %d", n, maxStripes)
	}
}

// A connection that comes while another one moves bulk gets a tunnel without it,
// and the next small ones share that.
func TestBulkIsNotSharedWith(t *testing.T) {
	r := start(t)
	bulk := r.open()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		go io.Copy(io.Discard, bulk)
		for b := make([]byte, 256<<10); ; {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := bulk.Write(b); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	r.await("the tunnel is busy", func() bool { return bulk.tunnel.client.Rate() >= busyRate })
	small := r.open()
	if small.tunnel == bulk.tunnel {
		t.Error("a small connection shares a tunnel with bulk")
	}
	for range 5 {
		if s := r.open(); s.tunnel != small.tunnel {
			t.Error("a further small connection does not share the quiet tunnel")
		}
	}
	// Where no other can be made, it is better beside bulk than not at all.
	refused := errors.New("no route")
	r.failWith.Store(&refused)
	small.tunnel.client.Close()
	r.await("the quiet tunnel has ended", func() bool { return r.tunnels() == 1 })
	for range 3 {
		if s := r.open(); s.tunnel != bulk.tunnel {
			t.Error("not in the tunnel that there is")
		}
	}
	if n := r.dials.Load(); n > 3 {
		t.Errorf("%d dials: each connection tries what just failed", n)
	}
	close(stop)
	<-ended
}

func TestFailedDialIsEveryonesError(t *testing.T) {
	r := start(t)
	refused := errors.New("no route")
	r.failWith.Store(&refused)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := r.pool.Open(t.Context(), r.target, request); !errors.Is(err, refused) {
				t.Errorf("opened: %v", err)
			}
		})
	}
	wg.Wait()
	r.failWith.Store(nil)
	r.echo(r.open())
}

// Who gives up waiting takes neither the others' dial along nor a lease.
func TestGivingUpOnADial(t *testing.T) {
	r := start(t)
	r.hold.Lock()
	impatient, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := r.pool.Open(impatient, r.target, request)
		gaveUp <- err
	}()
	patient := make(chan *Stream, 1)
	go func() { patient <- r.open() }()
	r.await("two wait", func() bool {
		r.pool.mu.Lock()
		defer r.pool.mu.Unlock()
		g := r.pool.groups[keyOf(r.target)]
		return g != nil && len(g.dials) == 1 && g.dials[0].waiting == 2
	})
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("gave up with %v", err)
	}
	r.hold.Unlock()
	s := <-patient
	r.echo(s)
	s.Close()
	if n := r.leases(); n != 0 || r.dials.Load() != 1 {
		t.Errorf("%d leases are left, %d dials", n, r.dials.Load())
	}
}

func TestLeaseEndsWithTheStream(t *testing.T) {
	r := start(t)
	a, b := r.open(), r.open()
	a.Close()
	a.Reset()
	if n := r.leases(); n != 1 {
		t.Errorf("%d leases for one open stream", n)
	}
	b.Reset()
	if n := r.leases(); n != 0 {
		t.Errorf("%d leases without a stream", n)
	}
}

func TestIdleTunnelIsClosedAndAUsedOneIsNot(t *testing.T) {
	r := start(t)
	r.pool.idleFor = 50 * time.Millisecond
	s := r.open()
	time.Sleep(4 * r.pool.idleFor)
	r.echo(s)
	s.Close()
	r.await("the idle tunnel is closed", func() bool { return r.tunnels() == 0 })
	r.await("the metric follows", func() bool { return testutil.ToFloat64(r.pool.cfg.Metrics.tunnels) == 0 })
	r.echo(r.open())
	if n := r.dials.Load(); n != 2 {
		t.Errorf("%d dials, want a second", n)
	}
}

func TestDeadTunnelIsReplaced(t *testing.T) {
	r := start(t)
	r.open()
	r.killTunnels()
	r.await("the dead tunnel is dropped", func() bool { return r.tunnels() == 0 })
	r.echo(r.open())
}

// A peer that drains serves what is open and takes nothing new: the next stream
// goes elsewhere, and no stream is lost to the moment in between.
func TestDrainingPeerLosesNoStream(t *testing.T) {
	r := start(t)
	old := r.open()
	var opened atomic.Int32
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := r.pool.Open(t.Context(), r.target, request)
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				r.echo(s)
				s.Close()
				opened.Add(1)
			}
		})
	}
	for range 5 {
		before := opened.Load()
		r.await("streams go on", func() bool { return opened.Load() > before+20 })
		r.drainPeers()
	}
	close(stop)
	wg.Wait()
	r.echo(old)
}

// A peer that allows few streams gets few in each tunnel, and nobody fails for
// having asked before that was known.
func TestPeersLimitIsKept(t *testing.T) {
	const limit = 5
	r := startWith(t, func(_ context.Context, conn net.Conn) {
		h2 := &http2.Server{MaxConcurrentStreams: limit}
		h2.ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			rc := http.NewResponseController(w)
			rc.Flush()
			for b := make([]byte, 100); ; {
				n, err := req.Body.Read(b)
				w.Write(b[:n])
				rc.Flush()
				if err != nil {
					return
				}
			}
		})})
	})
	var wg sync.WaitGroup
	for range 4*limit + 3 {
		wg.Go(func() { r.echo(r.open()) })
	}
	wg.Wait()
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	for _, tunnel := range r.pool.groups[keyOf(r.target)].tunnels {
		if n := tunnel.client.Streams(); n > limit {
			t.Errorf("%d streams in a tunnel whose peer allows %d", n, limit)
		}
	}
}

func TestCloseWaitsForStreamsAndThenCuts(t *testing.T) {
	r := start(t)
	s := r.open()
	closed := make(chan struct{})
	ctx, cut := context.WithCancel(context.Background())
	go func() { r.pool.Close(ctx); close(closed) }()
	r.await("the pool takes no more", func() bool {
		_, err := r.pool.Open(t.Context(), r.target, request)
		return errors.Is(err, ErrClosed)
	})
	r.echo(s)
	select {
	case <-closed:
		t.Fatal("closed with a stream open")
	default:
	}
	cut()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("Close goes on")
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the stream outlived the pool")
	}
}

func TestTunnelsAreBounded(t *testing.T) {
	r := start(t)
	r.pool.mu.Lock()
	r.pool.tunnels = tunnelsPerPool
	r.pool.mu.Unlock()
	if _, err := r.pool.Open(t.Context(), r.target, request); !errors.Is(err, ErrFull) {
		t.Errorf("opened: %v", err)
	}
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	if len(r.pool.groups) != 0 {
		t.Error("the refused target is remembered")
	}
	r.pool.tunnels = 0
}

var request = hbone.Request{Authority: netip.MustParseAddrPort("192.0.2.1:80")}

func identity(sa string) spiffe.ID {
	return spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: sa}
}

// rig is a pool whose peers echo, without TLS: over TCP, or over pipes where a test has a
// time of its own.
type rig struct {
	t        *testing.T
	pool     *Pool
	target   Target
	dials    atomic.Int32
	failWith atomic.Pointer[error]
	hold     sync.Mutex // held to keep dials from ending

	trust     trust
	listener  net.Listener // nil: pipes
	serving   sync.WaitGroup
	serveConn func(context.Context, net.Conn)

	mu    sync.Mutex
	peers []peer
}

type peer struct {
	conn  net.Conn
	drain context.CancelFunc
}

func start(t *testing.T) *rig {
	t.Helper()
	return startWith(t, echo)
}

func startWith(t *testing.T, serveConn func(context.Context, net.Conn)) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, serveConn)
	r.listener = l
	r.serving.Go(r.serve)
	return r
}

// startPiped is start within a bubble of synctest's.
func startPiped(t *testing.T) *rig {
	t.Helper()
	return newRig(t, echo)
}

func newRig(t *testing.T, serveConn func(context.Context, net.Conn)) *rig {
	r := &rig{t: t, serveConn: serveConn, target: Target{netip.MustParseAddrPort("192.0.2.1:15008"), []spiffe.ID{identity("web")}}}
	r.trust.changed = make(chan struct{})
	r.pool = New(Config{Dial: r.dial, Trust: &r.trust, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		r.pool.Close(ended)
		if r.listener != nil {
			r.listener.Close()
		}
		r.killTunnels()
		r.serving.Wait()
	})
	return r
}

func (r *rig) dial(context.Context, Target) (net.Conn, error) {
	r.dials.Add(1)
	r.hold.Lock()
	defer r.hold.Unlock()
	if err := r.failWith.Load(); err != nil {
		return nil, *err
	}
	if r.listener == nil {
		conn, peer := net.Pipe()
		r.take(peer)
		return conn, nil
	}
	return net.Dial("tcp", r.listener.Addr().String())
}

func (r *rig) serve() {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.take(conn)
	}
}

// take serves one tunnel.
func (r *rig) take(conn net.Conn) {
	ctx, drain := context.WithCancel(context.Background())
	r.mu.Lock()
	r.peers = append(r.peers, peer{conn, drain})
	r.mu.Unlock()
	r.serving.Go(func() {
		defer drain()
		r.serveConn(ctx, conn)
	})
}

func echo(ctx context.Context, conn net.Conn) {
	hbone.Serve(ctx, conn, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
		s, err := in.Accept()
		if err != nil {
			return
		}
		defer s.Close()
		io.Copy(s, s)
	})
}

func (r *rig) killTunnels() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		p.conn.Close()
		p.drain()
	}
}

func (r *rig) drainPeers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		p.drain()
	}
}

func (r *rig) open() *Stream {
	s, err := r.pool.Open(r.t.Context(), r.target, request)
	if err != nil {
		r.t.Error(err)
		r.t.FailNow()
	}
	return s
}

func (r *rig) echo(s *Stream) {
	s.SetDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, 4)
	if _, err := s.Write([]byte("ping")); err != nil {
		r.t.Errorf("write: %v", err)
	} else if _, err := io.ReadFull(s, got); err != nil || string(got) != "ping" {
		r.t.Errorf("read %q: %v", got, err)
	}
}

// tunnels and leases are of the one target.
func (r *rig) tunnels() int {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	if g := r.pool.groups[keyOf(r.target)]; g != nil {
		return len(g.tunnels)
	}
	return 0
}

func (r *rig) leases() (n int) {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	if g := r.pool.groups[keyOf(r.target)]; g != nil {
		for _, t := range g.tunnels {
			n += t.leases
		}
	}
	return n
}

func (r *rig) await(what string, done func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
	}
}
