package variant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/daemon"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/topology"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/exchange"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

const (
	bareRole     = "bare"
	siteVariable = "AMBIT_BENCH_SITE"
)

// where is what of a site the other process has to know.
type where struct {
	Client, Proxy, Backend netip.Addr
	Routes                 int
}

// Bare is the waypoint's engine (exchange, route, upstream) on a plain listener, with
// plain endpoints: routes, access log and metrics, but neither tunnels nor policy.
func Bare(_ context.Context, site Site) (Proxy, error) {
	told, err := json.Marshal(where{site.Client.IPv4, site.Proxy.IPv4, site.Backend.IPv4, site.Routes})
	if err != nil {
		return nil, err
	}
	p := &single{}
	return p, p.start(site, process.Self(bareRole, siteVariable+"="+string(told)), load.Target{Carrier: load.Plain, Address: site.at(plainPort)}, daemon.Version)
}

// Run is the main of this package's role; ok is false for another one.
func Run(role string) (ok bool, err error) {
	if role != bareRole {
		return false, nil
	}
	return true, runBare()
}

// bare is what the waypoint's composition is otherwise.
type bare struct {
	self  *workload.Workload
	store *workload.Store
	// binding and router are those of the front.
	binding *workload.Binding
	router  *route.Router
}

func runBare() error {
	var w where
	if err := json.Unmarshal([]byte(os.Getenv(siteVariable)), &w); err != nil {
		return fmt.Errorf("read site: %w", err)
	}
	pod := func(a netip.Addr) *topology.Pod { return &topology.Pod{IPv4: a} }
	site := Site{Client: pod(w.Client), Proxy: pod(w.Proxy), Backend: pod(w.Backend), Routes: w.Routes}
	b := &bare{store: workload.NewStore(), self: &workload.Workload{
		UID: workload.PodUID(clusterID, waypointID.Namespace, podName), Name: podName, Namespace: waypointID.Namespace, Addresses: []netip.Addr{w.Proxy},
		Identity: waypointID, Protocol: workload.HBONE, NativeTunnel: true, Healthy: true,
	}}
	for _, message := range site.world(false) {
		r, err := resource(message)
		if err != nil {
			return err
		}
		for _, rejection := range b.store.Apply(workload.Delta{Type: r.Body.GetTypeUrl(), Upserts: []workload.Resource{r}}) {
			return rejection
		}
	}
	var ok bool
	if b.binding, ok = b.store.Snapshot().Binding(keyOf("front")); !ok {
		return errors.New("the front is not bound")
	}
	b.router = route.Compile(b.binding.Routes)
	if len(b.router.Problems) > 0 {
		return b.router.Problems[0]
	}
	return b.serve()
}

// serve carries what comes to the plain listener as if a tunnel had asked for the front.
func (b *bare) serve() error {
	defer daemon.HeapFloor(16 << 20)() // as the waypoint has it
	log, metrics := slog.New(slog.NewTextHandler(os.Stderr, nil)), prometheus.NewRegistry()
	access := slog.New(slog.NewTextHandler(daemon.NewLines(os.Stderr), nil))
	opener := upstream.New(upstream.Config{
		Self: func() *workload.Workload { return b.self }, Endpoints: endpoints.New(endpoints.Config{Logger: log, Registerer: metrics}),
		PoolMetrics: pool.NewMetrics(metrics), Logger: log,
	})
	engine, err := exchange.New(exchange.Config{
		Snapshot: b.store.Snapshot, Self: func() *workload.Workload { return b.self }, Policies: b, Router: b, Upstream: opener,
		Telemetry: exchange.NewTelemetry(access, metrics), Logger: log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go engine.Run(ctx)
	listener, err := net.Listen("tcp", netip.AddrPortFrom(b.self.Addresses[0], plainPort).String())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		source := conns.Peer{Addr: conn.RemoteAddr().(*net.TCPAddr).AddrPort(), Identity: pki.ClientID}
		source.Workload, _ = b.store.Snapshot().WorkloadByAddr(source.Addr.Addr())
		go engine.Serve(ctx, ctx, conn, &server.Session{
			Client: target.Client{Peer: source}, Destination: front,
			Attempt: conns.Attempt{Direction: conns.Waypoint, Source: source, Destination: conns.Peer{Addr: front}, Started: time.Now()},
		}, false)
	}
}

// Ask has nobody to ask.
func (b *bare) Ask(context.Context, *workload.Snapshot, *target.Target, target.Client, *exchange.Request, *workload.Workload, netip.AddrPort) error {
	return nil
}

// Authenticate has nothing to verify.
func (b *bare) Authenticate(context.Context, *workload.Snapshot, *target.Target, *exchange.Request, time.Time) error {
	return nil
}

// Request is exchange.Policies': there is none.
func (*bare) Request(*workload.Snapshot, *target.Target, target.Client, *exchange.Request, *workload.Workload, netip.AddrPort) error {
	return nil
}

// Route is exchange.Router's, as the waypoint has it, for rules without filters.
func (b *bare) Route(s *workload.Snapshot, t *target.Target, c target.Client, r *exchange.Request) exchange.Plan {
	m := b.router.Match(&r.Seen, c.Identity.Namespace, t.Port.Service)
	if m.Rule == nil {
		return exchange.Plan{Answer: &exchange.Answer{Status: http.StatusNotFound, Flag: exchange.NoRoute}}
	}
	to := m.Rule.Pick(rand.Uint64N)
	p := exchange.Plan{Route: m.Rule.Route, Rule: m.Rule.Name}
	var ok bool
	if p.Service, ok = s.Service(to.Service); ok {
		p.Port, ok = p.Service.Port(to.Port)
	}
	if !ok {
		p.Answer = &exchange.Answer{Status: http.StatusInternalServerError, Flag: exchange.Invalid}
	}
	return p
}
