package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

// followLeaving runs followEgress until the test ends.
func (b *bed) followLeaving() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { b.followEgress(ctx) })
	b.t.Cleanup(func() { cancel(); group.Wait() })
}

// egress tells of a pod, and of the policies that decide on its way out. One of which only the name is told has not come.
func (b *bed) egress(pod *netnstest.Pod, late []string, policies ...*mesh.EgressPolicy) {
	b.t.Helper()
	names := late
	var resources []proto.Message
	for _, p := range policies {
		p.Namespace = "shop"
		names = append(names, "shop/"+p.Name)
		resources = append(resources, p)
	}
	config, err := anypb.New(&mesh.EgressPolicies{Names: names})
	if err != nil {
		b.t.Fatal(err)
	}
	workloadtest.Apply(b.t, b.store, append(resources, &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", pod.Name), Name: pod.Name, Namespace: "shop", ServiceAccount: pod.Name,
		TrustDomain: "cluster.local", Node: pod.Node.Name, ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs(pod.IPv4.String(), pod.IPv6.String()), TunnelProtocol: api.TunnelProtocol_HBONE,
		Extensions: []*api.Extension{{Name: workload.EgressPoliciesExtension, Config: config}},
	})...)
}

func denying(name string, exceptions ...*mesh.EgressException) *mesh.EgressPolicy {
	return &mesh.EgressPolicy{Name: name, Action: mesh.EgressPolicy_DENY, Exceptions: exceptions}
}

func byName(name string, ports ...*mesh.EgressPort) *mesh.EgressException {
	return &mesh.EgressException{Destination: &mesh.EgressException_DnsName{DnsName: name}, Ports: ports}
}

func byCIDR(cidr string, ports ...*mesh.EgressPort) *mesh.EgressException {
	return &mesh.EgressException{Destination: &mesh.EgressException_Cidr{Cidr: cidr}, Ports: ports}
}

// What a pod may not reach outside the mesh is refused in connect(2), what it may is not, and what it has open ends when a policy
// says so; what the mesh knows is none of it.
func TestPodsLeaveTheMeshAsPolicySays(t *testing.T) {
	b := newBed(t)
	b.followLeaving()
	web, outside, other, plain := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("outside"), b.network.Node("b").Pod("other"), b.network.Node("b").Pod("plain")
	for _, server := range []*netnstest.Pod{outside, other, plain} {
		server.Start().Listen("[::]:8080")
	}
	app := web.Start()
	b.capture(web)
	b.publish(plain, api.TunnelProtocol_NONE)
	// Names of the pods that are not published: they are outside the mesh.
	b.outsidePodRanges()
	reaches := func(when string, to netip.Addr) {
		t.Helper()
		conn, err := app.Dial(netip.AddrPortFrom(to, 8080))
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		conn.Close()
	}
	refused := func(when string, to netip.Addr) {
		t.Helper()
		if _, err := app.Dial(netip.AddrPortFrom(to, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", when, err)
		}
	}
	b.egress(web, nil)
	reaches("without policies", outside.IPv4)
	open := mustDial(t, app, outside.IPv4)
	kept := mustDial(t, app, other.IPv6)
	within := mustDial(t, app, plain.IPv4)

	b.egress(web, nil, denying("shut", byCIDR(other.IPv6.String()+"/128", &mesh.EgressPort{Port: 8080, Protocol: mesh.EgressPort_TCP})))
	eventually(t, "what is open ends", func() bool { return open.Echo("still there?") != nil })
	mustEcho(t, kept)
	mustEcho(t, within)
	refused("denied", outside.IPv4)
	refused("denied, IPv6", outside.IPv6)
	reaches("excepted", other.IPv6)
	refused("excepted for the other family", other.IPv4)
	reaches("a pod that the mesh knows", plain.IPv4)
	b.egress(web, nil, denying("shut", byCIDR(other.IPv6.String()+"/128", &mesh.EgressPort{Port: 8081, Protocol: mesh.EgressPort_TCP})))
	eventually(t, "what is not excepted any more ends", func() bool { return kept.Echo("still there?") != nil })

	trial := denying("trial")
	trial.DryRun = true
	b.egress(web, nil, trial)
	reaches("on trial", outside.IPv4)
}

// A policy that has not come is waited for, and then nothing leaves; when it comes, what it says counts.
func TestNothingLeavesBeforeThePolicyIsThere(t *testing.T) {
	b := newBed(t)
	b.followLeaving()
	web, outside := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("outside")
	outside.Start().Listen("[::]:8080")
	app := web.Start()
	b.capture(web)
	b.outsidePodRanges()
	to := netip.AddrPortFrom(outside.IPv4, 8080)
	b.egress(web, nil)
	open := mustDial(t, app, outside.IPv4)
	b.egress(web, []string{"shop/late"})
	began := time.Now()
	if _, err := app.Dial(to); !errors.Is(err, unix.ECONNREFUSED) || time.Since(began) < time.Second {
		t.Errorf("while it is missing: %v after %v", err, time.Since(began))
	}
	eventually(t, "what is open ends", func() bool { return open.Echo("still there?") != nil })
	time.AfterFunc(300*time.Millisecond, func() {
		workloadtest.Apply(t, b.store, &mesh.EgressPolicy{Name: "late", Namespace: "shop", Action: mesh.EgressPolicy_ALLOW})
	})
	if _, err := app.Dial(to); err != nil {
		t.Errorf("it comes meanwhile: %v", err)
	}

	// Of a pod that the controller has not told of nothing leaves where something may be denied.
	workloadtest.Apply(t, b.store, &mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_PERMISSIVE, EgressDenied: true})
	fresh := b.network.Node("a").Pod("fresh")
	b.capture(fresh)
	if _, err := fresh.Start().Dial(to); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("of a pod that is not known: %v", err)
	}
}

// A pod reaches what the node's resolvers say a name stands for, whatever any other server says.
func TestNamesAreWhatTheNodesResolversSay(t *testing.T) {
	b := newBed(t)
	b.followLeaving()
	web, api, liar := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("api"), b.network.Node("b").Pod("liar")
	for _, server := range []*netnstest.Pod{api, liar} {
		server.Start().Listen("[::]:8080")
	}
	serveLies(t, liar)
	b.serveNodesResolver(api.IPv4, api.IPv6)
	app := web.Start()
	b.capture(web)
	b.outsidePodRanges()
	b.egress(web, nil, denying("shut", byName("*.example", &mesh.EgressPort{Port: 8080, Protocol: mesh.EgressPort_TCP})))
	for _, way := range []struct{ api, liar netip.Addr }{{api.IPv4, liar.IPv4}, {api.IPv6, liar.IPv6}} {
		to := netip.AddrPortFrom(way.api, 8080)
		if _, err := app.Dial(to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("before the name was asked for: %v", err)
		}
		if _, err := lookUp(t, web, "udp", way.liar, "other.name."); err != nil {
			t.Fatal(err)
		}
		if _, err := app.Dial(to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("known by another name: %v", err)
		}
		for _, transport := range []string{"udp", "tcp"} {
			if got, err := lookUp(t, web, transport, way.liar, "api.example."); err != nil || got != way.api {
				t.Errorf("from the liar, by %s: %s, %v", transport, got, err)
			}
		}
		conn, err := app.Dial(to)
		if err != nil {
			t.Errorf("known by its name: %v", err)
			continue
		}
		conn.Close()
		if _, err := app.Dial(netip.AddrPortFrom(way.liar, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("what the liar says the name is: %v", err)
		}
	}
	// A connection outlives the name.
	live := mustDial(t, app, api.IPv4)
	b.captured()[0].egress.Names = egress.NewNames()
	b.egress(web, nil, denying("shut", byName("*.example")))
	mustEcho(t, live)
	if _, err := app.Dial(netip.AddrPortFrom(api.IPv4, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the name's time is over: %v", err)
	}
	mustEcho(t, live)
	if reasons := b.reasons(); len(reasons) > 0 {
		t.Errorf("cut: %v", reasons)
	}
}

// Datagrams, and whatever is not TCP, leave as policy says from the pod's first moment; names count for them too, and for as long
// as they are used.
func TestDatagramsLeaveAsPolicySays(t *testing.T) {
	b := newBed(t)
	var known atomic.Bool
	b.synced = known.Load
	web, quic, liar := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("quic"), b.network.Node("b").Pod("liar")
	for _, server := range []*netnstest.Pod{quic, liar} {
		server.Start().ListenUDP("[::]:443")
	}
	serveLies(t, liar)
	b.serveNodesResolver(quic.IPv4, quic.IPv6)
	app := web.Start()
	b.capture(web)
	asks := func(to netip.Addr, port uint16) error {
		_, err := app.AskUDPWith(netip.AddrPortFrom(to, port), netnstest.DialOptions{Timeout: 150 * time.Millisecond})
		return err
	}
	if err := asks(quic.IPv4, 443); err == nil {
		t.Error("it leaves before anything is known")
	}
	b.followLeaving()
	time.Sleep(20 * time.Millisecond)
	if err := asks(quic.IPv4, 443); err == nil {
		t.Error("it leaves while nothing is known")
	}
	known.Store(true)
	b.egress(web, nil)
	eventually(t, "it leaves where nothing is denied", func() bool { return asks(quic.IPv4, 443) == nil })

	udp := &mesh.EgressPort{Port: 443, Protocol: mesh.EgressPort_UDP}
	b.egress(web, nil, denying("shut", byName("*.example", udp)))
	eventually(t, "it is dropped where it is denied", func() bool { return asks(quic.IPv4, 443) != nil })
	port := web.SniffPort()
	for _, way := range []struct{ quic, liar netip.Addr }{{quic.IPv4, liar.IPv4}, {quic.IPv6, liar.IPv6}} {
		if err := asks(way.quic, 443); err == nil {
			t.Errorf("%s: it leaves before the name was asked for", way.quic)
		}
		if got, err := lookUp(t, web, "udp", way.liar, "api.example."); err != nil || got != way.quic {
			t.Fatalf("from the liar: %s, %v", got, err)
		}
		if err := asks(way.quic, 443); err != nil {
			t.Errorf("%s: known by its name: %v", way.quic, err)
		}
		if err := asks(way.quic, 444); err == nil {
			t.Errorf("%s: another port", way.quic)
		}
		if err := asks(way.liar, 443); err == nil {
			t.Errorf("%s: what the liar says the name is", way.liar)
		}
	}
	for _, frame := range port.Take() {
		for _, liar := range []netip.Addr{liar.IPv4, liar.IPv6} {
			if bytes.Contains(frame, liar.AsSlice()) {
				t.Errorf("the liar got %x", frame)
			}
		}
	}
	// The name's time is over, and a policy changes: what is used goes on.
	b.captured()[0].egress.Names = egress.NewNames()
	b.egress(web, nil, denying("shut", byName("api.example", udp)))
	time.Sleep(50 * time.Millisecond)
	if err := asks(quic.IPv4, 443); err != nil {
		t.Errorf("used, and excepted still: %v", err)
	}
	b.egress(web, nil, denying("shut", byName("other.example", udp)))
	eventually(t, "it is dropped where it is excepted no more", func() bool { return asks(quic.IPv4, 443) != nil })
	b.egress(web, nil, denying("shut", byCIDR(quic.IPv4.String()+"/32", udp)))
	eventually(t, "it leaves where its address is excepted", func() bool { return asks(quic.IPv4, 443) == nil })
	b.egress(web, []string{"shop/late"}, denying("shut", byCIDR(quic.IPv4.String()+"/32", udp)))
	eventually(t, "it is dropped while a policy is missing", func() bool { return asks(quic.IPv4, 443) != nil })
	b.egress(web, nil)
	eventually(t, "it leaves where nothing is denied any more", func() bool { return asks(quic.IPv6, 443) == nil })
}

// What a policy on trial would drop leaves, and is counted and in the log by policy, source and destination; what it excepts is not.
// Once it is in force, it drops.
func TestDatagramsOnTrialLeaveAndAreTold(t *testing.T) {
	b := newBed(t)
	var log syncBuffer
	b.logger = slog.New(slog.NewJSONHandler(&log, nil))
	metrics := prometheus.NewRegistry()
	b.dataplane.egress = egress.NewMetrics(metrics)
	b.followLeaving()
	web, quic := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("quic")
	quic.Start().ListenUDP("[::]:443")
	b.serveNodesResolver(quic.IPv4, quic.IPv6)
	app := web.Start()
	b.capture(web)
	to := netip.AddrPortFrom(quic.IPv4, 443)
	asks := func(port uint16) error {
		_, err := app.AskUDPWith(netip.AddrPortFrom(quic.IPv4, port), netnstest.DialOptions{Timeout: 150 * time.Millisecond})
		return err
	}
	told := func(policy, destination string) float64 {
		t.Helper()
		return counterOf(t, metrics, "ambit_egress_would_refuse_total", map[string]string{
			"policy": policy, "source": "spiffe://cluster.local/ns/shop/sa/web", "destination": destination, "protocol": "UDP",
		})
	}
	trial := func(exceptions ...*mesh.EgressException) *mesh.EgressPolicy {
		p := denying("trial", exceptions...)
		p.DryRun = true
		return p
	}
	udp := &mesh.EgressPort{Port: 443, Protocol: mesh.EgressPort_UDP}
	tried := func() bool { return len(b.captured()[0].toldRules().Trial()) > 0 }

	b.egress(web, nil, trial(byName("api.example", udp)))
	eventually(t, "it is on trial", tried)
	for range 3 {
		if err := asks(443); err != nil {
			t.Errorf("on trial: %v", err)
		}
	}
	eventually(t, "each packet is counted", func() bool { return told("shop/trial", to.String()) == 3 })
	lines := slices.DeleteFunc(strings.Split(log.String(), "\n"), func(line string) bool { return !strings.Contains(line, "egress policy on trial would refuse") })
	for _, want := range []string{
		`"policy":"shop/trial"`, `"source":"spiffe://cluster.local/ns/shop/sa/web"`,
		`"src.addr":"` + web.IPv4.String() + `"`, `"dst.addr":"` + to.String() + `"`, `"protocol":"UDP"`, `"pod":"web"`,
	} {
		if len(lines) != 1 || !strings.Contains(lines[0], want) {
			t.Errorf("want one line with %s in the log: %q", want, lines)
		}
	}

	if _, err := lookUp(t, web, "udp", quic.IPv4, "api.example."); err != nil {
		t.Fatal(err)
	}
	if err := asks(443); err != nil {
		t.Errorf("excepted: %v", err)
	}
	_ = asks(444) // nobody answers there
	eventually(t, "another port is counted", func() bool { return told("shop/trial", "api.example:444") == 1 })
	if n := told("shop/trial", "api.example:443") + told("shop/trial", to.String()); n != 3 {
		t.Errorf("what is excepted by its name is counted: %v", n)
	}

	b.egress(web, nil, trial(), denying("shut"))
	eventually(t, "it is dropped by the policy in force", func() bool { return asks(443) != nil })
	eventually(t, "and counted as the other's", func() bool {
		_ = asks(443) // the first one may have come before the exception was gone
		return told("shop/trial", "api.example:443") > 0
	})
	if n := told("shop/shut", "api.example:443"); n != 0 {
		t.Errorf("%v packets are counted as if the policy in force were on trial", n)
	}

	b.egress(web, nil, trial())
	eventually(t, "it leaves when that is gone", func() bool { return asks(443) == nil })
	b.egress(web, nil, denying("trial"))
	eventually(t, "it is dropped when the trial is over", func() bool { return asks(443) != nil })
}

// counterOf is a counter of which some labels are said; zero if there is none.
func counterOf(t testing.TB, metrics prometheus.Gatherer, name string, labels map[string]string) (sum float64) {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			said := map[string]string{}
			for _, l := range m.GetLabel() {
				said[l.GetName()] = l.GetValue()
			}
			matches := family.GetName() == name
			for label, want := range labels {
				matches = matches && said[label] == want
			}
			if matches {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// syncBuffer is written and read at the same time.
type syncBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// What was learnt is known to the next process: who resolved a name before goes on.
func TestNamesOutliveTheProcess(t *testing.T) {
	b := newBed(t)
	b.followLeaving()
	web, api := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("api")
	api.Start().Listen("[::]:8080")
	b.serveNodesResolver(api.IPv4, api.IPv6)
	app := web.Start()
	shut := func() { b.egress(web, nil, denying("shut", byName("api.example"))) }
	b.capture(web)
	b.outsidePodRanges()
	shut()
	eventually(t, "it is denied", func() bool { return b.captured()[0].isDenied() })
	if _, err := lookUp(t, web, "udp", api.IPv4, "api.example."); err != nil {
		t.Fatal(err)
	}
	mustDial(t, app, api.IPv4)
	next := func() {
		t.Helper()
		before := b.captured()[0]
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		before.Drain(short)
		if err := b.node.close(); err != nil {
			t.Fatal(err)
		}
		b.startProcess()
		b.outsidePodRanges()
		b.capture(web)
		shut()
		b.followLeaving()
	}
	for range 2 { // the file's content is the same, and is there still
		if err := b.names.save(b.captured()); err != nil {
			t.Fatal(err)
		}
		next()
		mustDial(t, app, api.IPv4)
		eventually(t, "it is denied", func() bool { return b.captured()[0].isDenied() })
	}
	if err := os.WriteFile(b.names.path, []byte("ambit names 1 sha256:00\n{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	next()
	if _, err := app.Dial(netip.AddrPortFrom(api.IPv4, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("by a damaged file: %v", err)
	}
}

// What a pod's configuration is known by changes with the policies on its way out, and with what they say.
func TestConfigurationVersionsTellOfTheWayOut(t *testing.T) {
	b := newBed(t)
	web := b.network.Node("a").Pod("web")
	seen := map[string]string{}
	for name, policies := range map[string][]*mesh.EgressPolicy{
		"none": nil, "denied": {denying("shut")}, "with an exception": {denying("shut", byName("api.example"))}, "with another": {denying("shut", byName("www.example"))},
	} {
		b.egress(web, nil, policies...)
		version := configVersion(b.store.Snapshot(), workload.PodUID("Kubernetes", "shop", "web"))
		if before, ok := seen[version]; ok || version == "" {
			t.Errorf("version %q of %q is that of %q", version, name, before)
		}
		seen[version] = name
	}
}

// outsidePodRanges makes addresses that the mesh does not know ones of outside.
func (b *bed) outsidePodRanges() {
	b.t.Helper()
	workloadtest.Apply(b.t, b.store, &mesh.Config{TrustDomain: "cluster.local", ClusterId: "Kubernetes", PodRanges: []string{"172.16.0.0/12"}})
}

// reasons for which live connections are being cut.
func (b *bed) reasons() (all []conns.Reason) {
	for _, c := range b.conns.Live() {
		if context.Cause(c.Context()) != nil {
			all = append(all, conns.EgressDenied)
		}
	}
	return all
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after 5 s: %s", what)
		}
	}
}
