package proxytest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/inbound"
	"github.com/ambit-mesh/ambit/ztunnel/outbound"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

const trustDomain = "cluster.local"

// Tolerance of other clocks, short enough for tests to see its end.
const Tolerance = 200 * time.Millisecond

// Mesh is pods and what they share.
type Mesh struct {
	CA    *certstest.CA
	Certs *certs.Store
	Store *workload.Store
	Conns *conns.Registry
	Relay *relay.Relay
	// Policy is what decides at destinations: by what is published.
	Policy *policy.Enforcer
	// Endpoints is what the pods know together, as if they were on one node. Its
	// time goes on only with Advance.
	Endpoints *endpoints.Registry
	Metrics   *prometheus.Registry

	// To be set before pods start.
	// IPv6 gives pods addresses of that family instead of IPv4.
	IPv6 bool
	// DrainTimeout of the proxies.
	DrainTimeout time.Duration
	// Limits of what a peer may hold, and how many files the connections of all may need;
	// plenty, if zero.
	Limits   accept.Limits
	Capacity int

	t           testing.TB
	poolMetrics *pool.Metrics
	egress      *egress.Metrics
	log         *slog.Logger
	lines       lines

	clock    atomic.Int64 // what was advanced
	wall     atomic.Int64 // by how much the clock that certificates go by is ahead
	limits   *accept.Quotas
	capacity *quota.Shares
	after    func(*conns.Attempt) // see SetAdmitted
	trusted  atomic.Pointer[trusted]
	captured uint16 // the next port that a pod's outbound listener owns

	mu sync.Mutex
	// Guarded by mu.
	pods   map[string]*Pod // by uid
	lookup Lookup
	veto   Policy // nil for none
	sign   Sign   // nil for the authority
}

// Lookup answers for the controller.
type Lookup func(ctx context.Context, addr netip.Addr) (found bool, err error)

// Sign answers for the authority.
type Sign func(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error)

// Policy decides for all pods, before the policies that are published.
type Policy func(*conns.Attempt) bool

// New makes a mesh without pods. It ends with the test.
func New(t testing.TB) *Mesh {
	synced := make(chan struct{})
	close(synced)
	return newMesh(t, synced)
}

// newMesh makes a mesh whose configuration is complete once synced is closed.
func newMesh(t testing.TB, synced <-chan struct{}) *Mesh {
	m := &Mesh{
		CA:           certstest.NewCA(t, trustDomain),
		Store:        workload.NewStore(),
		Metrics:      prometheus.NewRegistry(),
		DrainTimeout: 500 * time.Millisecond,
		t:            t,
		pods:         map[string]*Pod{},
		lookup:       func(context.Context, netip.Addr) (bool, error) { return false, nil },
		captured:     firstCaptured,
	}
	m.trusted.Store(&trusted{roots: m.CA.Bundle()})
	m.log = slog.New(slog.NewJSONHandler(&m.lines, nil))
	m.Conns = conns.New(conns.Config{Logger: m.log, Registerer: m.Metrics})
	var err error
	if m.Relay, err = relay.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Relay.Close() })
	began := time.Now()
	m.Endpoints = endpoints.New(endpoints.Config{
		Logger: m.log, Registerer: m.Metrics,
		Now: func() time.Time { return began.Add(time.Duration(m.clock.Load())) },
	})
	m.egress = egress.NewMetrics(m.Metrics)
	m.poolMetrics = pool.NewMetrics(m.Metrics)
	m.Certs = certs.New(certs.Config{
		Fetch: m.fetch, Bundle: m.bundle, Retiring: func() []string { return m.trusted.Load().retiring },
		Revoked: func() *revocation.List { return m.Store.Snapshot().Revoked() },
		Now:     func() time.Time { return time.Now().Add(time.Duration(m.wall.Load())) }, Tolerance: Tolerance, Logger: slog.New(slog.DiscardHandler),
	})
	m.run("certificates", m.Certs.Run)
	m.Policy = policy.New(policy.Config{Snapshot: m.Store.Snapshot, Synced: synced, Logger: m.log, Registerer: m.Metrics})
	m.run("policy", m.Policy.Run)
	m.Publish(&mesh.Config{
		TrustDomain: trustDomain, ClusterId: "Kubernetes",
		PodRanges: []string{"10.9.0.0/16", "fd09::/64"}, ServiceRanges: []string{"10.96.0.0/12"},
	})
	return m
}

// Advance lets the time go on in which endpoints are ejected.
func (m *Mesh) Advance(d time.Duration) { m.clock.Add(int64(d)) }

// Publish gives resources to all pods at once.
func (m *Mesh) Publish(resources ...proto.Message) {
	m.t.Helper()
	workloadtest.Apply(m.t, m.Store, resources...)
}

// Service publishes a service of the pods: all its captured ports lead to their
// applications.
func (m *Mesh) Service(name, vip string, pods ...*Pod) {
	m.t.Helper()
	addAddress(m.t, vip)
	m.publishService(name, vip, pods...)
}

func (m *Mesh) publishService(name, vip string, pods ...*Pod) {
	m.t.Helper()
	s := m.service(name, vip)
	for _, p := range pods {
		p.published.Services = map[string]*api.PortList{workload.ServiceKey(s.Namespace, s.Hostname): {Ports: s.Ports}}
		m.Publish(p.published)
	}
}

// service publishes a service, whose tunnels may have identities of its own.
func (m *Mesh) service(name, vip string, identities ...string) *api.Service {
	m.t.Helper()
	s := &api.Service{
		Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local",
		Addresses: workloadtest.NetworkAddrs(vip), SubjectAltNames: identities,
	}
	for p := firstCaptured; p <= lastCaptured; p++ {
		s.Ports = append(s.Ports, &api.Port{ServicePort: uint32(p), TargetPort: AppPort})
	}
	m.Publish(s)
	return s
}

// quotas are what the peers of all pods hold.
func (m *Mesh) quotas() *accept.Quotas {
	if m.limits == nil {
		m.limits = accept.NewQuotas(m.Limits)
	}
	return m.limits
}

// shares are what the pods carry together.
func (m *Mesh) shares() *quota.Shares {
	if m.capacity == nil {
		m.capacity = quota.NewShares(cmp.Or(m.Capacity, 1<<20))
	}
	return m.capacity
}

// Deliver is outbound.Local.
func (m *Mesh) Deliver(ctx context.Context, target *workload.Workload, src outbound.LocalSource, dst netip.AddrPort) (outbound.LocalConn, error) {
	m.mu.Lock()
	var in *inbound.Listener
	if p, ok := m.pods[target.UID]; ok {
		in = p.Inbound
	}
	m.mu.Unlock()
	if in == nil {
		return nil, errors.New("not captured on this node")
	}
	c, err := in.Local(ctx, src.Workload, src.Client, dst)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// SetPolicy has something else than what is published say no.
func (m *Mesh) SetPolicy(veto Policy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.veto = veto
}

// Admit is inbound.Policy's.
func (m *Mesh) Admit(ctx context.Context, a *conns.Attempt) error {
	m.mu.Lock()
	veto := m.veto
	m.mu.Unlock()
	if veto != nil && !veto(a) {
		return conns.Fail(conns.PolicyDenied, errors.New("denied by the test"))
	}
	err := m.Policy.Admit(ctx, a)
	if after := m.after; err == nil && after != nil {
		after(a)
	}
	return err
}

// SetAdmitted has something happen between the admission of a connection and its
// begin. It is to be set before there are connections.
func (m *Mesh) SetAdmitted(after func(*conns.Attempt)) { m.after = after }

// Follow is inbound.Policy's.
func (m *Mesh) Follow(c *conns.Conn) (forget func()) { return m.Policy.Follow(c) }

// Trust makes another authority's root the only one that is trusted.
func (m *Mesh) Trust(ca *certstest.CA) { m.SetRoots(ca.Bundle(), nil) }

// SetRoots makes these the roots that are trusted, and some of them such as sign no more.
func (m *Mesh) SetRoots(roots, retiring []*x509.Certificate) {
	now := &trusted{roots: roots}
	for _, root := range retiring {
		sum := sha256.Sum256(root.Raw)
		now.retiring = append(now.retiring, hex.EncodeToString(sum[:]))
	}
	m.trusted.Store(now)
	m.Certs.BundleChanged()
}

// trusted is what the mesh trusts.
type trusted struct {
	roots    []*x509.Certificate
	retiring []string // by fingerprint
}

// Revoke makes a list the one in force.
func (m *Mesh) Revoke(list *mesh.RevocationList) {
	m.t.Helper()
	list.TrustDomain = trustDomain
	m.Publish(list)
	m.Certs.BundleChanged()
}

func (m *Mesh) bundle() []*x509.Certificate { return m.trusted.Load().roots }

// SetLookup replaces the controller that knows of nothing.
func (m *Mesh) SetLookup(lookup Lookup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookup = lookup
}

// SetClock has the clock that certificates go by be ahead; nothing else sees that.
func (m *Mesh) SetClock(ahead time.Duration) { m.wall.Store(int64(ahead)) }

// SetSign replaces the authority that signs at once; nil puts it back.
func (m *Mesh) SetSign(sign Sign) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sign = sign
}

func (m *Mesh) fetch(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
	m.mu.Lock()
	sign := m.sign
	m.mu.Unlock()
	if sign == nil {
		sign = m.CA.Fetch
	}
	return sign(ctx, id, csrPEM)
}

// Lookup is outbound.Config's.
func (m *Mesh) Lookup(ctx context.Context, addr netip.Addr) (bool, error) {
	m.mu.Lock()
	lookup := m.lookup
	m.mu.Unlock()
	return lookup(ctx, addr)
}

// run runs something until the test ends or stop is called, and then waits for it.
func (m *Mesh) run(what string, run func(context.Context) error) (stop func()) {
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

// Access waits until the access log has n lines, and returns them.
func (m *Mesh) Access(n int) []map[string]any {
	m.t.Helper()
	var out []map[string]any
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		out = m.lines.access(m.t)
		if len(out) == n {
			return out
		}
		if len(out) > n || time.Now().After(deadline) {
			m.t.Fatalf("%d lines in the access log, want %d: %v", len(out), n, out)
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

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func (l *lines) access(t testing.TB) []map[string]any { return l.of(t, "connection") }

// first line with a message; nil if there is none.
func (l *lines) first(t testing.TB, message string) map[string]any {
	for _, line := range l.of(t, message) {
		return line
	}
	return nil
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
