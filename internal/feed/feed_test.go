package feed_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func pod(name, addr string, changes ...func(*api.Workload)) *api.Workload {
	w := &api.Workload{
		Uid: uid(name), Name: name, Namespace: "shop", Node: "n1",
		Addresses: workloadtest.Addrs(addr), TunnelProtocol: api.TunnelProtocol_HBONE,
	}
	for _, change := range changes {
		change(w)
	}
	return w
}

func uid(name string) string { return workload.PodUID("Kubernetes", "shop", name) }

func unreadable(w *api.Workload) { w.TunnelProtocol = 77 }
func withdrawn(w *api.Workload)  { w.TunnelProtocol = api.TunnelProtocol_NONE }

// What a client says first: who it is, and that it wants everything.
func TestSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		run(t, c)
		s := c.accept()

		for key, want := range map[string]string{"authorization": "Bearer secret", "clusterid": "Kubernetes"} {
			if got := s.metadata.Get(key); !slices.Equal(got, []string{want}) {
				t.Errorf("metadata %s is %v, want %q", key, got, want)
			}
		}
		for i, typeURL := range workload.Types {
			r := s.request()
			if r.GetTypeUrl() != typeURL {
				t.Errorf("request %d is for %s, want %s", i, r.GetTypeUrl(), typeURL)
			}
			if len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe())+len(r.GetInitialResourceVersions()) != 0 {
				t.Errorf("%s: not a plain wildcard subscription: %v", typeURL, r)
			}
			if (r.GetNode() != nil) != (i == 0) {
				t.Errorf("request %d: node is %v, want it in the first only", i, r.GetNode())
			}
			if i > 0 {
				continue
			}
			if got, want := r.GetNode().GetId(), "ztunnel~10.244.1.2~ztunnel-x.ambit-system~ambit-system.svc.cluster.local"; got != want {
				t.Errorf("node id is %q, want %q", got, want)
			}
			for key, want := range map[string]string{"NAME": "ztunnel-x", "NAMESPACE": "ambit-system", "NODE_NAME": "n1", "INSTANCE_IPS": "10.244.1.2,fd00:10::2"} {
				if got := r.GetNode().GetMetadata().GetFields()[key].GetStringValue(); got != want {
					t.Errorf("node metadata %s is %q, want %q", key, got, want)
				}
			}
		}
		s.quiet()
	})
}

// The state is complete when every type was answered, whatever the order, even
// with nothing; but not without the mesh's Config.
func TestSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.first()
		s.push(workload.AddressType, nil, pod("cart", "10.244.1.7"))
		s.pushNothing(workload.EgressPolicyType, workload.AuthorizationType, workload.NamespaceType, workload.RevocationListType)
		s.push(workload.TrustBundleType, nil, &mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{c.ca.pem()}})
		if isSynced(f) || f.Connected() {
			t.Error("synced before the last type came")
		}
		s.push(workload.ConfigType, nil)
		if isSynced(f) {
			t.Error("synced without a Config")
		}
		if !f.Connected() {
			t.Error("not connected, though every type was answered")
		}
		s.push(workload.ConfigType, nil, meshConfig)
		if !isSynced(f) {
			t.Error("not synced")
		}
		if got := f.store.Snapshot(); len(got.TrustBundle()) != 1 || !got.Configured() {
			t.Error("the store lacks what was sent")
		}
	})
}

// The controller lets a pod go when all have acknowledged its withdrawal. An
// acknowledgement is therefore worth nothing unless the store is ahead of it.
func TestAcknowledgedMeansApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"))

		for range 50 {
			for _, change := range []func(*api.Workload){withdrawn, func(*api.Workload) {}} {
				w := pod("cart", "10.244.1.7", change)
				s.push(workload.AddressType, nil, w)
				// Not a moment later.
				got, _ := f.store.Snapshot().WorkloadByUID(uid("cart"))
				if want := w.TunnelProtocol == api.TunnelProtocol_HBONE; (got.Protocol == workload.HBONE) != want {
					t.Fatalf("acknowledged, but the store has %s", got.Protocol)
				}
			}
		}
		s.push(workload.AddressType, []string{uid("cart")})
		if _, ok := f.store.Snapshot().WorkloadByUID(uid("cart")); ok {
			t.Error("the removal was acknowledged, but the workload is there")
		}
	})
}

// A resource that cannot be read is named in a NACK and keeps its former state;
// the others of the response are applied, and the stream goes on.
func TestBadResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"))

		nack := s.push(workload.AddressType, nil,
			pod("cart", "10.244.1.8", unreadable), pod("fresh", "10.244.1.9", unreadable), pod("good", "10.244.1.10"))
		message := nack.GetErrorDetail().GetMessage()
		for _, want := range []string{uid("cart"), uid("fresh"), "tunnel_protocol"} {
			if !strings.Contains(message, want) {
				t.Errorf("the NACK %q does not name %s", message, want)
			}
		}
		snapshot := f.store.Snapshot()
		if w, ok := snapshot.WorkloadByAddr(netip.MustParseAddr("10.244.1.7")); !ok || w.UID != uid("cart") {
			t.Error("the former state is gone")
		}
		if _, ok := snapshot.WorkloadByUID(uid("good")); !ok {
			t.Error("the good resource was not applied")
		}
		if _, ok := snapshot.RejectedByAddr(netip.MustParseAddr("10.244.1.9")); !ok {
			t.Error("the address of the rejected resource is not remembered")
		}

		if nack := s.push("type.googleapis.com/future.Type", nil); nack.GetErrorDetail() == nil {
			t.Error("an unknown type was acknowledged")
		}
		if ack := s.push(workload.AddressType, nil, pod("cart", "10.244.1.8"), pod("fresh", "10.244.1.9")); ack.GetErrorDetail() != nil {
			t.Errorf("good resources were refused: %v", ack)
		}
		if len(f.store.Snapshot().Rejected()) != 0 {
			t.Error("still rejected")
		}
	})
}

// A NACK does not grow with what is wrong.
func TestNackIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		run(t, c)
		s := c.accept()
		s.first()
		var bad []workload.Resource
		for i := range 1000 {
			bad = append(bad, workload.Resource{Name: strings.Repeat("x", i)})
		}
		s.send(workload.AddressType, nil, bad...)
		if got := s.request().GetErrorDetail().GetMessage(); len(got) > 4096 || !strings.Contains(got, "and 990 more") {
			t.Errorf("the NACK has %d bytes: %.200s", len(got), got)
		}
	})
}

// After a lost stream the state stays, and the client says what it has: not
// what it could not read, which it wants to see again.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"), pod("gone", "10.244.1.8"))
		s.push(workload.AddressType, []string{uid("gone")}, pod("bad", "10.244.1.9", unreadable), pod("new", "10.244.1.10"))
		s.cut()

		s = c.accept()
		if f.Connected() {
			t.Error("connected before the new stream was answered")
		}
		if !isSynced(f) {
			t.Error("no longer synced")
		}
		first := s.first()
		want := map[string]bool{uid("cart"): true, uid("new"): true}
		got := first[workload.AddressType].GetInitialResourceVersions()
		for name, version := range got {
			if !want[name] || version == "" {
				t.Errorf("claims to have %s %q", name, version)
			}
		}
		if len(got) != len(want) {
			t.Errorf("has %d resources, want %d", len(got), len(want))
		}
		if _, ok := first[workload.ConfigType].GetInitialResourceVersions()["mesh"]; !ok {
			t.Error("the Config is not among what is known")
		}

		// Nothing is new but one removal.
		for _, typeURL := range workload.Types {
			var removed []string
			if typeURL == workload.AddressType {
				removed = []string{uid("new")}
			}
			s.push(typeURL, removed)
		}
		synctest.Wait()
		if !f.Connected() {
			t.Error("not connected again")
		}
		if _, ok := f.store.Snapshot().WorkloadByUID(uid("cart")); !ok {
			t.Error("what was not sent again is gone")
		}
		if _, ok := f.store.Snapshot().WorkloadByUID(uid("new")); ok {
			t.Error("what was removed meanwhile is there")
		}
	})
}

// A token is read for every stream, and a missing one only delays.
func TestTokenRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		var calls atomic.Int32
		run(t, c, func(config *feed.Config) {
			config.Token = func() (string, error) {
				switch calls.Add(1) {
				case 1:
					return "old", nil
				case 2:
					return "", errors.New("no token")
				default:
					return "new", nil
				}
			}
		})
		s := c.accept()
		if got := s.metadata.Get("authorization"); !slices.Equal(got, []string{"Bearer old"}) {
			t.Errorf("authorization is %v", got)
		}
		s.cut()
		if got := c.accept().metadata.Get("authorization"); !slices.Equal(got, []string{"Bearer new"}) {
			t.Errorf("authorization is %v", got)
		}
	})
}

// The roots are read for every connection: none, foreign ones, then the right ones.
func TestRootsRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		foreign := newAuthority(t).pool
		var calls atomic.Int32
		run(t, c, func(config *feed.Config) {
			config.Roots = func() *x509.CertPool {
				switch calls.Add(1) {
				case 1:
					return nil
				case 2:
					return foreign
				default:
					return c.roots()
				}
			}
		})
		c.accept().serve(meshConfig)
		if calls.Load() != 3 {
			t.Errorf("roots were read %d times, want 3", calls.Load())
		}

		// The controller comes back with another root.
		c.stop()
		c.mu.Lock()
		c.ca = newAuthority(t)
		c.mu.Unlock()
		c.start()
		c.accept().first()
	})
}

// A controller by another name is not the controller.
func TestServerNameIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c, func(config *feed.Config) { config.Address = "someone.else:15012" })
		time.Sleep(patience)
		if f.Connected() || isSynced(f) {
			t.Error("connected")
		}
		select {
		case <-c.streams:
			t.Error("a stream was opened")
		default:
		}
	})
}

// While the controller is down the client tries again: at once at first, every
// few seconds in the end; a stream that lived makes it eager again.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		c.stop()
		run(t, c)
		within := func(d time.Duration) int {
			before := c.dialCount()
			time.Sleep(d)
			synctest.Wait()
			return c.dialCount() - before
		}
		if n := within(time.Second); n < 5 || n > 10 {
			t.Errorf("%d attempts in the first second, want 5 to 10", n)
		}
		within(5 * time.Minute)
		if n := within(10 * time.Minute); n < 299 || n > 602 {
			t.Errorf("%d attempts in 10 minutes, want one each 1 s to 2 s", n)
		}

		c.start()
		s := c.accept()
		time.Sleep(20 * time.Second)
		s.cut()
		started := time.Now()
		c.accept()
		if waited := time.Since(started); waited > 50*time.Millisecond {
			t.Errorf("waited %s after a stream that lived", waited)
		}
	})
}

// The Service may lead to a pod of the controller that is gone, and nobody answers: the next attempt comes soon, and
// may find the pod that runs.
func TestAnAttemptThatNobodyAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		var attempts atomic.Int32
		started := time.Now()
		run(t, c, func(config *feed.Config) {
			config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				if attempts.Add(1) == 1 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return c.dial(ctx, address)
			}
		})
		c.accept()
		if waited := time.Since(started); waited > 5*time.Second {
			t.Errorf("another attempt was made after %s", waited)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		f := run(t, c)
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"), pod("web", "10.244.1.8"))
		s.push(workload.AddressType, nil, pod("bad", "10.244.1.9", unreadable))
		time.Sleep(5 * time.Second)
		check := func(want map[string]float64) {
			t.Helper()
			synctest.Wait()
			got := gather(t, f)
			for name, value := range want {
				if got[name] != value {
					t.Errorf("%s is %v, want %v", name, got[name], value)
				}
			}
		}
		check(map[string]float64{
			"ambit_feed_connected":                      1,
			`ambit_feed_resources{type="Address"}`:      2,
			`ambit_feed_resources{type="Config"}`:       1,
			`ambit_feed_rejected_total{type="Address"}`: 1,
			`ambit_feed_rejected_total{type="Config"}`:  0,
			"ambit_feed_reconnects_total":               0,
			"ambit_feed_last_push_age_seconds":          5,
		})
		s.cut()
		check(map[string]float64{"ambit_feed_connected": 0, "ambit_feed_reconnects_total": 1, `ambit_feed_resources{type="Address"}`: 2})
	})
}

func gather(t *testing.T, f *client) map[string]float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetName() + `="` + l.GetValue() + `"}`
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

func TestIncompleteConfigIsRefused(t *testing.T) {
	if _, err := feed.New(feed.Config{}); err == nil {
		t.Error("accepted")
	}
}

func onHostNetwork(w *api.Workload) { w.NetworkMode = api.NetworkMode_HOST_NETWORK }

// A controller that vanishes without a word is noticed, and one that is only
// silent is left alone.
func TestVanishedController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		frozen := make(chan struct{})
		f := run(t, c, func(config *feed.Config) {
			config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				conn, err := c.dial(ctx, address)
				return &freezing{Conn: conn, frozen: frozen, closed: make(chan struct{})}, err
			}
		})
		c.accept().serve(meshConfig)
		time.Sleep(10 * time.Minute)
		if !f.Connected() {
			t.Fatal("a silent controller was left")
		}
		close(frozen)
		time.Sleep(17 * time.Second)
		if f.Connected() {
			t.Error("still connected 17 s after the controller vanished")
		}
	})
}

// freezing is a connection whose network stops delivering.
type freezing struct {
	net.Conn
	frozen <-chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (c *freezing) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.frozen:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *freezing) Write(b []byte) (int, error) {
	select {
	case <-c.frozen:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *freezing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
