package waypointtest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

const (
	trustDomain = "cluster.local"
	// Waypoint is the name of the waypoint's Gateway.
	Waypoint   = "shop/way"
	tunnelPort = 15008
)

// Address of the waypoint's pod.
var Address = netip.MustParseAddr("10.9.0.10")

// Mesh is a waypoint, and what it shares with the pods around it.
type Mesh struct {
	CA        *certstest.CA
	Certs     *certs.Store
	Store     *workload.Store
	Conns     *conns.Registry
	Endpoints *endpoints.Registry
	Upstream  *upstream.Opener
	Metrics   *prometheus.Registry
	Logger    *slog.Logger

	// DrainTimeout of the waypoint. To be set before it starts.
	DrainTimeout time.Duration

	t        testing.TB
	lines    lines
	services map[string]*api.Service // as they are published, by key
}

// New makes a mesh in which nothing runs. It ends with the test.
func New(t testing.TB) *Mesh {
	m := &Mesh{
		CA: certstest.NewCA(t, trustDomain), Store: workload.NewStore(), Metrics: prometheus.NewRegistry(),
		DrainTimeout: 500 * time.Millisecond, t: t, services: map[string]*api.Service{},
	}
	m.Logger = slog.New(slog.NewJSONHandler(&m.lines, nil))
	m.Certs = certs.New(certs.Config{Fetch: m.CA.Fetch, Bundle: m.CA.Bundle, Revoked: func() *revocation.List { return m.Store.Snapshot().Revoked() }, Logger: slog.New(slog.DiscardHandler)})
	m.Run("certificates", m.Certs.Run)
	m.Conns = conns.New(conns.Config{Logger: m.Logger, Registerer: m.Metrics})
	m.Endpoints = endpoints.New(endpoints.Config{Logger: m.Logger, Registerer: m.Metrics})
	id := identity("way")
	m.Certs.Want(id)
	m.Upstream = upstream.New(upstream.Config{
		Self: m.Self, Trust: m.Certs, Endpoints: m.Endpoints, PoolMetrics: pool.NewMetrics(m.Metrics), Logger: m.Logger,
		TLS: clientTLS(m.Certs, id),
	})
	m.Publish(&mesh.Config{TrustDomain: trustDomain, ClusterId: "Kubernetes", PodRanges: []string{"10.9.0.0/16"}})
	return m
}

func identity(account string) spiffe.ID {
	return spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: account}
}

// Self is the waypoint's own pod.
func (m *Mesh) Self() *workload.Workload {
	return &workload.Workload{
		UID: workload.PodUID("Kubernetes", "shop", "way-1"), Name: "way-1", Namespace: "shop", Addresses: []netip.Addr{Address},
		Protocol: workload.HBONE, NativeTunnel: true, Identity: identity("way"), Healthy: true,
		Services: map[string][]workload.Port{"shop/way.shop.svc.cluster.local": {{Service: tunnelPort, Target: tunnelPort}}},
	}
}

// Start runs the waypoint until the test or stop ends it. change may complete its
// configuration.
func (m *Mesh) Start(change func(*server.Config)) (stop func()) {
	m.t.Helper()
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(Address, tunnelPort)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { listener.Close() })
	config := server.Config{
		Listener: listener, TLS: m.Certs.ServerConfig(identity("way")), Trust: m.Certs, Quotas: accept.NewQuotas(accept.Limits{}),
		Snapshot: m.Store.Snapshot, Self: m.Self, Upstream: m.Upstream, Conns: m.Conns, Logger: m.Logger, DrainTimeout: m.DrainTimeout,
	}
	change(&config)
	end := m.Run("waypoint", server.New(config).Run)
	return func() {
		end()
		over, cancel := context.WithCancel(context.Background())
		cancel()
		m.Upstream.Close(over)
	}
}

// Publish gives resources to the waypoint.
func (m *Mesh) Publish(resources ...proto.Message) {
	m.t.Helper()
	workloadtest.Apply(m.t, m.Store, resources...)
}

// Revoke makes a certificate that the mesh's authority has signed the only one that
// is revoked.
func (m *Mesh) Revoke(certificate *x509.Certificate) {
	m.t.Helper()
	m.Publish(&mesh.RevocationList{TrustDomain: trustDomain, Certificates: []*mesh.RevokedCertificates{{
		Issuer: revocation.KeyID(m.CA.Certificate()), Serials: []string{revocation.SerialOf(certificate)},
	}}})
	m.Certs.BundleChanged()
}

// Remove takes one back.
func (m *Mesh) Remove(resource proto.Message) {
	m.t.Helper()
	r := workloadtest.Resource(m.t, resource)
	m.Store.Apply(workload.Delta{Type: r.Body.GetTypeUrl(), Removed: []string{r.Name}})
}

// Service publishes a service of the pods, whose one port leads to their port 8080.
func (m *Mesh) Service(name, vip string, app api.AppProtocol, pods ...*Pod) *workload.Service {
	m.t.Helper()
	s := &api.Service{
		Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local", Addresses: workloadtest.NetworkAddrs(vip),
		Ports: []*api.Port{{ServicePort: 80, TargetPort: AppPort, AppProtocol: app}},
	}
	key := workload.ServiceKey(s.Namespace, s.Hostname)
	m.services[key] = s
	m.Publish(s)
	for _, p := range pods {
		if p.published.Services == nil {
			p.published.Services = map[string]*api.PortList{}
		}
		p.published.Services[key] = &api.PortList{Ports: s.Ports}
		m.Publish(p.published)
	}
	published, _ := m.Store.Snapshot().Service(key)
	return published
}

// Lead has clients of a service sent through a waypoint, "way" for this one, none if its
// name is empty; the word of the announced one is taken as well.
func (m *Mesh) Lead(s *workload.Service, to, announced string) {
	m.t.Helper()
	hostname := func(name string) string { return name + ".shop.svc.cluster.local" }
	published := proto.Clone(m.services[s.Key]).(*api.Service)
	if to != "" {
		published.Waypoint = &api.GatewayAddress{
			Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: hostname(to)}},
			HboneMtlsPort: 15008,
		}
	}
	if announced != "" {
		config, err := anypb.New(&mesh.WaypointAnnounced{Service: workload.ServiceKey("shop", hostname(announced))})
		if err != nil {
			m.t.Fatal(err)
		}
		published.Extensions = append(published.Extensions, &api.Extension{Name: workload.WaypointAnnouncedExtension, Config: config})
	}
	m.Publish(published)
}

// Bind publishes a binding of a service.
func (m *Mesh) Bind(s *workload.Service, changes ...func(*mesh.Binding)) *mesh.Binding {
	m.t.Helper()
	b := &mesh.Binding{Target: &mesh.Binding_Service{Service: s.Key}, Waypoint: Waypoint}
	for _, change := range changes {
		change(b)
	}
	m.Publish(b)
	return b
}

// Run runs something until the test ends or stop is called, and then waits for it.
func (m *Mesh) Run(what string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, context.Canceled) {
				m.t.Errorf("%s: %v", what, err)
			}
		case <-time.After(m.DrainTimeout + 5*time.Second):
			m.t.Errorf("%s does not end", what)
		}
	})
	m.t.Cleanup(stop)
	return stop
}

// Lines waits until the log has n lines with the message, and returns them.
func (m *Mesh) Lines(message string, n int) []map[string]any {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		out := m.lines.of(m.t, message)
		if len(out) == n {
			return out
		}
		if len(out) > n || time.Now().After(deadline) {
			m.t.Fatalf("%d lines of %q in the log, want %d: %v", len(out), message, n, out)
		}
	}
}

// lines is the log.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) of(t testing.TB, message string) (out []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := json.NewDecoder(bytes.NewReader(l.all.Bytes())); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line["msg"] == message {
			out = append(out, line)
		}
	}
	return out
}
