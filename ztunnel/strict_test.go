package main

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// follow runs followStrictness until the test ends.
func (b *bed) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { b.followStrictness(ctx) })
	b.t.Cleanup(func() { cancel(); group.Wait() })
}

// require is what the controller says of a pod's strictness.
func (b *bed) require(pod *netnstest.Pod, mode mesh.MutualTLS_Mode) {
	b.t.Helper()
	config, err := anypb.New(&mesh.MutualTLS{Mode: mode})
	if err != nil {
		b.t.Fatal(err)
	}
	workloadtest.Apply(b.t, b.store, &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", pod.Name), Name: pod.Name, Namespace: "shop", ServiceAccount: pod.Name,
		TrustDomain: "cluster.local", Node: pod.Node.Name, ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs(pod.IPv4.String(), pod.IPv6.String()), TunnelProtocol: api.TunnelProtocol_HBONE,
		Extensions: []*api.Extension{{Name: workload.MutualTLSExtension, Config: config}},
	})
}

func strictOf(t *testing.T, running any) bool {
	t.Helper()
	strict, err := running.(*capture).redirect.Strict()
	if err != nil {
		t.Fatal(err)
	}
	return strict
}

// The guard is what the workload's policy says, and says again: a connection from before the capture has its grace.
func TestGuardFollowsThePolicy(t *testing.T) {
	b := newBed(t)
	b.grace = 300 * time.Millisecond
	b.follow()
	web, cart := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("cart")
	cart.Start().Listen("[::]:8080")
	client := web.Start()
	before := mustDial(t, client, cart.IPv4)
	target := b.target(web)
	target.Serving = true
	running, err := b.Start(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { running.Close() })
	b.capture(cart)
	becomes := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); strictOf(t, running) != want; time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("strict: %v, want %v", !want, want)
			}
		}
	}
	becomes(false)
	if older := b.older()[workload.PodUID("Kubernetes", "shop", "web")]; len(older) != 1 || older[0].Remote != netip.AddrPortFrom(cart.IPv4, 8080) {
		t.Errorf("older connections: %v", older)
	}
	b.require(cart, mesh.MutualTLS_STRICT)
	b.require(web, mesh.MutualTLS_STRICT)
	becomes(true)
	if guards := b.dumpGuards().([]dumpedGuard); len(guards) != 2 || len(guards[1].Older) != 1 || !guards[1].Strict {
		t.Errorf("guards: %+v", guards)
	}
	mustEcho(t, before)
	mustDial(t, client, cart.IPv4) // by tunnel
	var ended error
	for deadline := time.Now().Add(3 * time.Second); ended == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		ended = before.EchoWithin("?", time.Second)
	}
	if !errors.Is(ended, unix.ECONNABORTED) && !errors.Is(ended, unix.ECONNRESET) && !errors.Is(ended, unix.EPIPE) {
		t.Errorf("a connection from before the capture, after the grace: %v, want it ended", ended)
	}
	b.require(web, mesh.MutualTLS_PERMISSIVE)
	becomes(false)
	b.require(web, mesh.MutualTLS_STRICT)
	becomes(true)
	b.require(web, mesh.MutualTLS_DISABLE)
	becomes(false)
}

// A pod that starts is strict from the first moment, unless it is known that it need not be.
func TestNewPodsStartStrict(t *testing.T) {
	b := newBed(t)
	known := true
	b.synced = func() bool { return known }
	node := b.network.Node("a")
	for _, c := range []struct {
		name      string
		prepare   func(*netnstest.Pod)
		synced    bool
		serving   bool
		namespace mesh.MutualTLS_Mode
		want      bool
	}{
		{name: "nothing-known", want: true},
		{name: "nothing-said", synced: true, want: false},
		{name: "strict-namespace", synced: true, namespace: mesh.MutualTLS_STRICT, want: true},
		{name: "strict-workload", synced: true, want: true, prepare: func(p *netnstest.Pod) { b.require(p, mesh.MutualTLS_STRICT) }},
		{name: "exempt-workload", synced: true, namespace: mesh.MutualTLS_STRICT, want: false, prepare: func(p *netnstest.Pod) { b.require(p, mesh.MutualTLS_PERMISSIVE) }},
		{name: "running", serving: true, namespace: mesh.MutualTLS_STRICT, want: false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := node.Pod(c.name)
			known = c.synced
			if c.namespace == 0 {
				c.namespace = mesh.MutualTLS_PERMISSIVE
			}
			workloadtest.Apply(t, b.store, &mesh.Namespace{Name: "shop", MutualTls: c.namespace})
			if c.prepare != nil {
				c.prepare(pod)
			}
			target := b.target(pod)
			target.Serving = c.serving
			running, err := b.Start(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			defer running.Close()
			if got := strictOf(t, running); got != c.want {
				t.Errorf("strict: %v, want %v", got, c.want)
			}
		})
	}
}

// With a strict pod on the node, or one of a namespace that may have some, unknown pods are refused, once all others are known.
func TestUnknownPodsAreRefusedBesideStrictOnes(t *testing.T) {
	b := newBed(t)
	var mu sync.Mutex
	known, namespaces := false, []string(nil)
	b.onNode = func() ([]string, bool) {
		mu.Lock()
		defer mu.Unlock()
		return namespaces, known
	}
	b.follow()
	web := b.network.Node("a").Pod("web")
	b.capture(web)
	opened, err := b.node.get()
	if err != nil {
		t.Fatal(err)
	}
	becomes := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			if is, err := opened.RefusesUnclassified(); err == nil && is == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("refused: %v, want %v", !want, want)
			}
		}
	}
	b.require(web, mesh.MutualTLS_STRICT)
	time.Sleep(50 * time.Millisecond)
	becomes(false)
	mu.Lock()
	known = true
	mu.Unlock()
	becomes(true)
	b.require(web, mesh.MutualTLS_PERMISSIVE)
	becomes(false)
	mu.Lock()
	namespaces = []string{"plain", "shop"}
	mu.Unlock()
	workloadtest.Apply(t, b.store, &mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_STRICT})
	becomes(true)
}

// A pod that was strict when the process ended is strict for the next one, which does not know its workload yet.
func TestStrictnessOutlivesTheProcess(t *testing.T) {
	b := newBed(t)
	b.follow()
	web := b.network.Node("a").Pod("web")
	target := b.target(web)
	if _, err := b.Start(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	b.require(web, mesh.MutualTLS_STRICT)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if guards := b.dumpGuards().([]dumpedGuard); len(guards) == 1 && guards[0].Strict {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not strict")
		}
	}
	b.node.close()
	b.startProcess()
	b.follow()
	running, err := b.Start(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	time.Sleep(20 * time.Millisecond)
	if !strictOf(t, running) {
		t.Error("a restart made the pod permissive")
	}
}
