package policy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

var (
	web    = spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	client = netip.MustParseAddrPort("10.244.1.1:4000")
	target = netip.MustParseAddrPort("10.244.1.2:8080")
)

// bed is an enforcer, and what it decides by.
type bed struct {
	*testing.T
	*policy.Enforcer
	store   *workload.Store
	conns   *conns.Registry
	synced  chan struct{}
	metrics *prometheus.Registry
}

func newBed(t *testing.T) *bed {
	b := &bed{T: t, store: workloadtest.Store(t, &mesh.Config{TrustDomain: "cluster.local", ClusterId: "Kubernetes"}), synced: make(chan struct{}), metrics: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b.conns = conns.New(conns.Config{Logger: log, Registerer: prometheus.NewRegistry()})
	b.Enforcer = policy.New(policy.Config{Snapshot: b.store.Snapshot, Synced: b.synced, Logger: log, Registerer: b.metrics})
	return b
}

// run has the enforcer run until the test ends.
func (b *bed) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Enforcer.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
}

// pod publishes the destination, with policies attached.
func (b *bed) pod(policies ...string) *workload.Workload {
	b.Helper()
	w := &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", "cart"), Name: "cart", Namespace: "shop", ServiceAccount: "cart", ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs("10.244.1.2"), TunnelProtocol: api.TunnelProtocol_HBONE, AuthorizationPolicies: policies,
	}
	workloadtest.Apply(b, b.store, w)
	published, _ := b.store.Snapshot().WorkloadByUID(w.Uid)
	return published
}

// own is the pod as its node knows it.
func own() *workload.Workload {
	return &workload.Workload{
		UID: workload.PodUID("Kubernetes", "shop", "cart"), Name: "cart", Namespace: "shop", Addresses: []netip.Addr{target.Addr()},
		Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"},
	}
}

func attempt() *conns.Attempt {
	return &conns.Attempt{
		Direction: conns.Inbound, Transport: conns.HBONE,
		Source:      conns.Peer{Addr: client, Identity: web},
		Destination: conns.Peer{Addr: target, Workload: own()},
	}
}

// authorization that matches everything; attached, or of the namespace.
func authorization(name string, action security.Action, attached bool) *security.Authorization {
	a := &security.Authorization{Namespace: "shop", Name: name, Action: action, Scope: security.Scope_NAMESPACE, Rules: []*security.Rule{{}}}
	if attached {
		a.Scope = security.Scope_WORKLOAD_SELECTOR
	}
	return a
}

const allow, deny = security.Action_ALLOW, security.Action_DENY

// admit demands an outcome after some time; reason "" is admission.
func (b *bed) admit(reason conns.Reason, after time.Duration) *conns.Attempt {
	b.Helper()
	began, a := time.Now(), attempt()
	err := b.Admit(b.Context(), a)
	if took := time.Since(began); took != after {
		b.Errorf("decided after %s, want %s", took, after)
	}
	b.is(err, reason)
	return a
}

func (b *bed) is(err error, reason conns.Reason) {
	b.Helper()
	var failed *conns.Failure
	switch {
	case reason == "" && err != nil:
		b.Errorf("refused: %v", err)
	case reason != "" && (!errors.As(err, &failed) || failed.Reason != reason):
		b.Errorf("%v, want %s", err, reason)
	}
}

// open establishes and follows a connection that was admitted.
func (b *bed) open() *conns.Conn {
	b.Helper()
	c := b.conns.Open(context.Background(), *b.admit("", 0))
	forget := b.Follow(c)
	b.Cleanup(func() { forget(); c.End(conns.Closed, nil) })
	return c
}

// lives demands that a connection lives, or was cut with an error that says why.
func (b *bed) lives(c *conns.Conn, want bool, why string) {
	b.Helper()
	synctest.Wait()
	switch cause := context.Cause(c.Context()); {
	case want && cause != nil:
		b.Errorf("cut: %v", cause)
	case !want && (cause == nil || !strings.Contains(cause.Error(), why)):
		b.Errorf("cut: %v, want %q", cause, why)
	}
}

const hold = 2 * time.Second

func TestHeldUntilWhatDecidesIsThere(t *testing.T) {
	later := func(do func()) { time.AfterFunc(time.Second, do) }
	for name, c := range map[string]struct {
		before, come func(*bed)
		reason       conns.Reason // of what has come
	}{
		"the configuration": {
			func(b *bed) { b.pod() }, func(b *bed) { close(b.synced) }, "",
		},
		"the pod itself": {
			func(b *bed) { close(b.synced) }, func(b *bed) { b.pod() }, "",
		},
		"a policy that allows": {
			func(b *bed) { close(b.synced); b.pod("shop/p") }, func(b *bed) { workloadtest.Apply(b, b.store, authorization("p", allow, true)) }, "",
		},
		"a policy that denies": {
			func(b *bed) { close(b.synced); b.pod("shop/p") }, func(b *bed) { workloadtest.Apply(b, b.store, authorization("p", deny, true)) }, conns.PolicyDenied,
		},
		"a policy that cannot be read": {
			func(b *bed) { close(b.synced); b.pod("shop/p") },
			func(b *bed) {
				b.store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{{Name: "shop/p", Version: "1"}}})
			}, conns.PolicyDenied,
		},
		"that the policy is gone": {
			func(b *bed) { close(b.synced); b.pod("shop/p") }, func(b *bed) { b.pod() }, "",
		},
	} {
		t.Run(name+" comes", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				c.before(b)
				later(func() { c.come(b) })
				b.admit(c.reason, time.Second)
			})
		})
		t.Run(name+" does not come", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				c.before(b)
				b.admit(conns.PolicyMissing, hold)
			})
		})
	}
}

// What is known to deny needs nothing more to be known.
func TestDeniedAtOnceThoughAPolicyIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.pod("shop/late")
		workloadtest.Apply(t, b.store, authorization("d", deny, false))
		if a := b.admit(conns.PolicyDenied, 0); a.Policy != "shop/d" {
			t.Errorf("by %q", a.Policy)
		}
	})
}

// What is published of another pod than the one that its node knows says nothing.
func TestPublishedOfAnotherPod(t *testing.T) {
	for name, change := range map[string]func(*api.Workload){
		"another identity": func(w *api.Workload) { w.ServiceAccount = "other" },
		"another address":  func(w *api.Workload) { w.Addresses = workloadtest.Addrs("10.244.1.3") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				close(b.synced)
				w := &api.Workload{
					Uid: own().UID, Name: "cart", Namespace: "shop", ServiceAccount: "cart", Addresses: workloadtest.Addrs("10.244.1.2"),
				}
				change(w)
				workloadtest.Apply(t, b.store, w)
				b.admit(conns.PolicyMissing, hold)
			})
		})
	}
}

func TestWhoeverWaitsMayGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		b.is(b.Admit(ctx, attempt()), conns.PolicyMissing)
		if took := time.Since(began); took != time.Second {
			t.Errorf("gave up after %s", took)
		}
	})
}

func TestLiveConnectionsAreJudgedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		b.pod()
		c := b.open()
		workloadtest.Apply(t, b.store, authorization("a", allow, false))
		b.lives(c, true, "")
		workloadtest.Apply(t, b.store, authorization("d", deny, true)) // attached to nobody
		b.lives(c, true, "")
		b.pod("shop/d")
		b.lives(c, false, "no longer admitted: denied by policy shop/d")
	})
}

// A pod that is no longer published keeps its connections, as far as policy lets it.
func TestUnpublishedPodsKeepTheirConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		workloadtest.Apply(t, b.store, authorization("a", allow, true))
		b.pod("shop/a")
		c := b.open()
		b.store.Apply(workload.Delta{Type: workload.AddressType, Removed: []string{own().UID}})
		b.lives(c, true, "")
		workloadtest.Apply(t, b.store, authorization("a", deny, true))
		b.lives(c, false, "shop/a")
	})
}

// A live connection goes on for a while although a policy is missing, and no longer.
func TestLiveConnectionsAndMissingPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		b.pod()
		c := b.open()
		b.pod("shop/late")
		time.Sleep(hold - time.Millisecond)
		b.lives(c, true, "")
		workloadtest.Apply(t, b.store, authorization("late", allow, true))
		time.Sleep(10 * hold)
		b.lives(c, true, "")

		b.pod("shop/late", "shop/never")
		time.Sleep(hold - time.Millisecond)
		b.lives(c, true, "")
		b.pod("shop/late", "shop/never", "shop/neither") // begins no new time
		time.Sleep(2 * time.Millisecond)
		b.lives(c, false, "shop/never applies to the workload and has not come")
	})
}

// What a newer controller says of a pod may name policies: while it cannot be read those of before are not taken for all, neither
// for new connections nor for live ones.
func TestPodsThatCannotBeReadLetNobodyIn(t *testing.T) {
	unreadable := func(b *bed) {
		if rejected := b.store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{workloadtest.Resource(b, &api.Workload{
			Uid: own().UID, Name: "cart", Namespace: "shop", ServiceAccount: "cart", ClusterId: "Kubernetes",
			Addresses: workloadtest.Addrs("10.244.1.2"), TunnelProtocol: 77, AuthorizationPolicies: []string{"shop/d"},
		})}}); len(rejected) != 1 {
			b.Fatal("it can be read")
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		workloadtest.Apply(t, b.store, authorization("d", deny, true))
		b.pod()
		c, other := b.open(), b.open()
		unreadable(b)
		time.Sleep(hold - time.Millisecond)
		b.lives(c, true, "")
		b.pod()
		time.Sleep(10 * hold)
		b.lives(c, true, "")
		unreadable(b)
		b.admit(conns.PolicyMissing, hold)
		time.Sleep(time.Millisecond)
		for _, c := range []*conns.Conn{c, other} {
			b.lives(c, false, "could not be read")
		}
		time.AfterFunc(time.Second, func() { b.pod() })
		b.admit("", time.Second)
		unreadable(b)
		time.AfterFunc(time.Second, func() { b.pod("shop/d") })
		b.admit(conns.PolicyDenied, time.Second)
	})
}

// The waypoint's connections are let in, and those of nobody else.
func TestWaypointIsNotBypassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.pod()
		before := b.open()
		b.run()
		workloadtest.Apply(t, b.store,
			&api.Service{Name: "wp", Namespace: "shop", Hostname: "wp.shop", Addresses: workloadtest.NetworkAddrs("10.96.0.9"), Ports: []*api.Port{{ServicePort: 15008}}},
			&api.Workload{Uid: "wp", Name: "wp", Namespace: "shop", ServiceAccount: "waypoint", Addresses: workloadtest.Addrs("10.244.7.7"), Services: map[string]*api.PortList{"shop/wp.shop": {Ports: []*api.Port{{ServicePort: 15008, TargetPort: 15008}}}}},
			&api.Workload{
				Uid: own().UID, Name: "cart", Namespace: "shop", ServiceAccount: "cart", Addresses: workloadtest.Addrs("10.244.1.2"),
				Waypoint: &api.GatewayAddress{
					Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: "wp.shop"}},
					HboneMtlsPort: 15008,
				},
			})
		b.lives(before, false, "no longer admitted, for it is older than the waypoint's binding")
		b.admit(conns.WaypointBypassed, 0)
		plain := attempt()
		plain.Source.Identity, plain.Transport = spiffe.ID{}, conns.Plaintext
		b.is(b.Admit(t.Context(), plain), conns.WaypointBypassed)
		from := attempt()
		from.Source.Identity.ServiceAccount = "waypoint"
		b.is(b.Admit(t.Context(), from), "")
	})
}

// The word of a waypoint that is announced is taken, and its clients may come straight.
func TestAnnouncedWaypoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		announced := func(names ...string) []*api.Extension {
			var all []*api.Extension
			for _, name := range names {
				config, err := anypb.New(&mesh.WaypointAnnounced{Service: name})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &api.Extension{Name: workload.WaypointAnnouncedExtension, Config: config})
			}
			return all
		}
		gate := &api.GatewayAddress{
			Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: "wp.shop"}},
			HboneMtlsPort: 15008,
		}
		cart := func(waypoint *api.GatewayAddress, extensions []*api.Extension) *api.Workload {
			return &api.Workload{
				Uid: own().UID, Name: "cart", Namespace: "shop", ServiceAccount: "cart", Addresses: workloadtest.Addrs("10.244.1.2"),
				Services:              map[string]*api.PortList{"shop/cart.shop": {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}}}},
				AuthorizationPolicies: []string{"shop/only"}, Waypoint: waypoint, Extensions: extensions,
			}
		}
		service := func(extensions []*api.Extension) *api.Service {
			return &api.Service{Name: "cart", Namespace: "shop", Hostname: "cart.shop", Addresses: workloadtest.NetworkAddrs("10.96.0.8"), Ports: []*api.Port{{ServicePort: 80}}, Extensions: extensions}
		}
		only := authorization("only", allow, true)
		only.Rules = []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "cluster.local/ns/shop/sa/web"}}},
		}}}}}}
		workloadtest.Apply(t, b.store, only,
			&api.Service{Name: "wp", Namespace: "shop", Hostname: "wp.shop", Addresses: workloadtest.NetworkAddrs("10.96.0.9"), Ports: []*api.Port{{ServicePort: 15008}}},
			&api.Workload{Uid: "wp", Name: "wp", Namespace: "shop", ServiceAccount: "waypoint", Addresses: workloadtest.Addrs("10.244.7.7"), Services: map[string]*api.PortList{"shop/wp.shop": {Ports: []*api.Port{{ServicePort: 15008, TargetPort: 15008}}}}})
		from := attempt()
		from.Source.Identity.ServiceAccount = "waypoint"
		stranger := attempt()
		stranger.Source.Identity.ServiceAccount = "stranger"
		for name, c := range map[string]struct {
			workload                 *api.Workload
			service                  *api.Service
			waypoint, client, others conns.Reason
		}{
			"nothing":              {cart(nil, nil), service(nil), conns.PolicyDenied, "", conns.PolicyDenied},
			"announced, a service": {cart(nil, nil), service(announced("shop/wp.shop")), "", "", conns.PolicyDenied},
			"announced, the pod":   {cart(nil, announced("shop/wp.shop")), service(nil), "", "", conns.PolicyDenied},
			"led, the pod":         {cart(gate, announced("shop/wp.shop")), service(nil), "", "", conns.PolicyDenied},
			"enforced, the pod":    {cart(gate, nil), service(nil), "", conns.WaypointBypassed, conns.WaypointBypassed},
			"another one":          {cart(nil, announced("shop/other.shop")), service(nil), conns.PolicyDenied, "", conns.PolicyDenied},
		} {
			workloadtest.Apply(t, b.store, c.workload, c.service)
			for who, want := range map[*conns.Attempt]conns.Reason{from: c.waypoint, attempt(): c.client, stranger: c.others} {
				var got conns.Reason
				if err := b.Admit(t.Context(), who); err != nil {
					got = conns.ReasonOf(err)
				}
				if got != want {
					t.Errorf("%s: %s is told %q, want %q", name, who.Source.Identity, got, want)
				}
			}
		}
	})
}

// Series of policies that are gone go with them, and dry runs are bounded.
func TestCardinalityIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		close(b.synced)
		b.run()
		b.pod()
		for i := range 20 {
			name := fmt.Sprint("d", i)
			workloadtest.Apply(t, b.store, authorization(name, deny, false))
			b.admit(conns.PolicyDenied, 0)
			b.store.Apply(workload.Delta{Type: workload.AuthorizationType, Removed: []string{"shop/" + name}})
			synctest.Wait()
		}
		dry := authorization("dry", deny, false)
		dry.DryRun = true
		workloadtest.Apply(t, b.store, dry)
		for i := range 1500 {
			a := attempt()
			a.Source.Identity.ServiceAccount = fmt.Sprint("sa-", i)
			b.is(b.Admit(t.Context(), a), "")
		}
		if n := b.series("ambit_authorization_decisions_total"); n != 1 {
			t.Errorf("%d series of decisions", n)
		}
		if n := b.series("ambit_authorization_dry_run_denials_total"); n != 1001 {
			t.Errorf("%d series of dry runs", n)
		}
	})
}

func (b *bed) series(name string) int {
	b.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return len(f.GetMetric())
		}
	}
	return 0
}

// Ten thousand live connections, of which one change is about half.
func TestManyConnectionsAreJudgedSoon(t *testing.T) {
	b := newBed(t)
	close(b.synced)
	b.pod()
	var all []*conns.Conn
	for i := range 10_000 {
		a := attempt()
		a.Source.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i % 2), byte(i >> 8), byte(i)}), 4000)
		if err := b.Admit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		c := b.conns.Open(context.Background(), *a)
		b.Follow(c)
		all = append(all, c)
	}
	b.run()
	half := authorization("half", deny, false)
	half.Rules = []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{SourceIps: []*security.Address{{Address: []byte{10, 1, 0, 0}, Length: 16}}}}}}}}
	resource := workloadtest.Resource(t, half)
	began := time.Now()
	b.store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{resource}})
	for i, c := range all {
		if i%2 == 0 {
			if c.Context().Err() != nil {
				t.Fatal("cut without need")
			}
			continue
		}
		select {
		case <-c.Context().Done():
		case <-time.After(10 * time.Second):
			t.Fatal("not cut")
		}
	}
	took := time.Since(began)
	t.Logf("10,000 connections were judged, and half of them cut, within %s", took)
	if took > 2*time.Second { // many times what it takes on an idle machine
		t.Errorf("took %s", took)
	}
}
