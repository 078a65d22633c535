package egress

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func port(first, last uint16, tcp, udp bool) workload.EgressPort {
	return workload.EgressPort{First: first, Last: last, TCP: tcp, UDP: udp}
}

func flow(protocol Protocol, dst string, names ...string) Flow {
	return Flow{Protocol: protocol, Destination: netip.MustParseAddrPort(dst), Names: names}
}

func deny(exceptions ...workload.EgressException) *workload.EgressPolicy {
	return &workload.EgressPolicy{Key: "shop/deny", Deny: true, Exceptions: exceptions}
}

func TestDecide(t *testing.T) {
	prefix := func(text string) netip.Prefix { return netip.MustParsePrefix(text) }
	onTrial := deny()
	onTrial.DryRun, onTrial.Key = true, "shop/trial"
	excepting := deny(workload.EgressException{Name: "api.example"})
	for _, c := range []struct {
		name  string
		rules Rules
		flow  Flow
		want  Outcome
		would []string
	}{
		{name: "nobody says anything", flow: flow(TCP, "203.0.113.7:443"), want: Allowed},
		{name: "denied", rules: Rules{denying: []*workload.EgressPolicy{deny()}}, flow: flow(TCP, "203.0.113.7:443"), want: Refused},
		{name: "missing", rules: Rules{Missing: []string{"shop/late"}}, flow: flow(TCP, "203.0.113.7:443"), want: Unknown},
		{name: "missing beside an exception", rules: Rules{Missing: []string{"shop/late"}, denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("0.0.0.0/0")})}}, flow: flow(TCP, "203.0.113.7:443"), want: Unknown},
		{name: "in the range", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("203.0.113.0/24")})}}, flow: flow(UDP, "203.0.113.7:443"), want: Allowed},
		{name: "out of the range", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("203.0.113.0/24")})}}, flow: flow(TCP, "203.0.114.7:443"), want: Refused},
		{name: "of the other family", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("0.0.0.0/0")})}}, flow: flow(TCP, "[2001:db8::1]:443"), want: Refused},
		{name: "another port", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("203.0.113.0/24"), Ports: []workload.EgressPort{port(443, 443, true, false)}})}}, flow: flow(TCP, "203.0.113.7:80"), want: Refused},
		{name: "another protocol", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: prefix("203.0.113.0/24"), Ports: []workload.EgressPort{port(443, 443, true, false)}})}}, flow: flow(UDP, "203.0.113.7:443"), want: Refused},
		{name: "ports do not let ICMP out", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Ports: []workload.EgressPort{port(1, 65535, true, true)}})}}, flow: flow(Other, "203.0.113.7:443"), want: Refused},
		{name: "the end of a range of ports", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{Ports: []workload.EgressPort{port(8000, 8080, true, true)}})}}, flow: flow(UDP, "203.0.113.7:8080"), want: Allowed},
		{name: "by name", rules: Rules{denying: []*workload.EgressPolicy{excepting}}, flow: flow(TCP, "203.0.113.7:443", "api.example"), want: Allowed},
		{name: "by no name", rules: Rules{denying: []*workload.EgressPolicy{excepting}}, flow: flow(TCP, "203.0.113.7:443"), want: Refused},
		{name: "by another name", rules: Rules{denying: []*workload.EgressPolicy{excepting}}, flow: flow(TCP, "203.0.113.7:443", "www.api.example", "evilapi.example"), want: Refused},
		{name: "of several one excepts", rules: Rules{denying: []*workload.EgressPolicy{deny(), excepting}}, flow: flow(TCP, "203.0.113.7:443", "api.example"), want: Allowed},
		{name: "says nothing", rules: Rules{denying: []*workload.EgressPolicy{deny(workload.EgressException{})}}, flow: flow(TCP, "203.0.113.7:443"), want: Refused},
		{name: "on trial", rules: Rules{trial: []*workload.EgressPolicy{onTrial}}, flow: flow(TCP, "203.0.113.7:443"), want: Allowed, would: []string{"shop/trial"}},
		{name: "on trial beside one that excepts", rules: Rules{trial: []*workload.EgressPolicy{onTrial}, denying: []*workload.EgressPolicy{excepting}}, flow: flow(TCP, "203.0.113.7:443", "api.example"), want: Allowed},
	} {
		d := c.rules.Decide(c.flow)
		if d.Outcome != c.want || !slices.Equal(d.WouldRefuse, c.would) {
			t.Errorf("%s: %+v", c.name, d)
		}
		if err := d.Error(c.flow); (err == nil) != (c.want == Allowed) || err != nil && !strings.Contains(err.Error(), d.Policies[0]) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Few of everything, so that chance meets.
var (
	somePrefixes = []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "fd00::/8", "fd00::1/128"}
	someIPs      = []string{"10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.1", "fd00::1", "fd00::2", "2001:db8::1"}
	someNames    = []string{"example", "api.example", "www.api.example", "other"}
)

func one[T any](all []T) T { return all[rand.IntN(len(all))] }

func randomException() (e workload.EgressException) {
	if rand.IntN(3) > 0 {
		e.Prefix = netip.MustParsePrefix(one(somePrefixes))
	} else if rand.IntN(2) > 0 {
		e.Name, e.Wildcard = one(someNames), rand.IntN(2) > 0
	}
	for range rand.IntN(3) {
		first := uint16(1 + rand.IntN(6))
		tcp := rand.IntN(2) > 0
		e.Ports = append(e.Ports, port(first, first+uint16(rand.IntN(3)), tcp, !tcp || rand.IntN(2) > 0))
	}
	return e
}

func randomRules() (r Rules) {
	for range rand.IntN(3) {
		p := deny()
		for range rand.IntN(4) {
			p.Exceptions = append(p.Exceptions, randomException())
		}
		r.denying = append(r.denying, p)
	}
	return r
}

func randomFlow() Flow {
	f := Flow{Protocol: Protocol(rand.IntN(3)), Destination: netip.AddrPortFrom(netip.MustParseAddr(one(someIPs)), uint16(1+rand.IntN(9)))}
	for range rand.IntN(2) {
		f.Names = append(f.Names, one(someNames))
	}
	return f
}

// without is r without one of its exceptions.
func without(r Rules) Rules {
	next := Rules{denying: slices.Clone(r.denying)}
	i := rand.IntN(len(next.denying))
	p := *next.denying[i]
	if len(p.Exceptions) > 0 {
		at := rand.IntN(len(p.Exceptions))
		p.Exceptions = slices.Delete(slices.Clone(p.Exceptions), at, at+1)
	}
	next.denying[i] = &p
	return next
}

func TestExceptionsLetOutNothingButWhatTheySay(t *testing.T) {
	let := 0
	for range 50000 {
		r, f := randomRules(), randomFlow()
		d := r.Decide(f)
		if len(r.denying) == 0 {
			if d.Outcome != Allowed {
				t.Fatalf("%v refused by nobody", f)
			}
			continue
		}
		// Said the other way round: somebody names the destination, and somebody the port, and both are the same.
		said := false
		for _, p := range r.denying {
			for _, e := range p.Exceptions {
				where := e.Prefix.IsValid() && e.Prefix.Contains(f.Destination.Addr()) || !e.Prefix.IsValid() && e.Name == "" && len(e.Ports) > 0
				for _, name := range f.Names {
					where = where || e.Name != "" && (name == e.Name && !e.Wildcard || e.Wildcard && strings.HasSuffix(name, "."+e.Name))
				}
				which := len(e.Ports) == 0
				for _, p := range e.Ports {
					for n := int(p.First); n <= int(p.Last); n++ {
						which = which || int(f.Destination.Port()) == n && (f.Protocol == TCP && p.TCP || f.Protocol == UDP && p.UDP)
					}
				}
				said = said || where && which
			}
		}
		if said != (d.Outcome == Allowed) {
			t.Fatalf("%v: %v, said %v by %+v", f, d, said, r.denying)
		}
		if said {
			let++
		}
		if narrower := without(r); narrower.Decide(f).Outcome == Allowed && d.Outcome != Allowed {
			t.Fatalf("%v: refused by %+v, allowed by %+v", f, r.denying, narrower.denying)
		}
		forgotten := f
		forgotten.Names = nil
		if r.Decide(forgotten).Outcome == Allowed && d.Outcome != Allowed {
			t.Fatalf("%v: allowed without its names alone", f)
		}
		late := r
		late.Missing = []string{"shop/late"}
		if late.Decide(f).Outcome == Allowed {
			t.Fatalf("%v: allowed while a policy is missing", f)
		}
		trial := r
		trial.trial = randomRules().denying
		if trial.Decide(f).Outcome != d.Outcome {
			t.Fatalf("%v: a policy on trial decided", f)
		}
	}
	if let < 1000 {
		t.Errorf("%d let out: too few to mean anything", let)
	}
}

// What the kernel is told allows the same as Decide, for all that it sees.
func TestAllowancesAreTheRules(t *testing.T) {
	let := 0
	for range 20000 {
		r, f := randomRules(), randomFlow()
		if f.Protocol == TCP || len(r.denying) == 0 {
			continue
		}
		var longest netip.Prefix
		static := r.Static()
		for prefix := range static {
			if prefix.Contains(f.Destination.Addr()) && (!longest.IsValid() || prefix.Bits() > longest.Bits()) {
				longest = prefix
			}
		}
		allowed := allows(static[longest], f)
		for _, name := range f.Names {
			if a, ok := r.Learnt(Learnt{Name: name, IP: f.Destination.Addr()}); ok {
				allowed = allowed || allows(a, f)
			}
		}
		if want := r.Decide(f).Outcome == Allowed; allowed != want {
			t.Fatalf("%v: the kernel is told %v, decided %v: %+v from %+v", f, allowed, want, static, r.exceptions())
		}
		if allowed {
			let++
		}
	}
	if let < 500 {
		t.Errorf("%d let out: too few to mean anything", let)
	}
	if late := (Rules{Missing: []string{"shop/late"}, denying: []*workload.EgressPolicy{deny(workload.EgressException{Prefix: netip.MustParsePrefix("::/0")})}}); len(late.Static()) > 0 {
		t.Error("something is let out while a policy is missing")
	}
}

func allows(a Allowance, f Flow) bool {
	return a.Every || f.Protocol == UDP && slices.ContainsFunc(a.UDP, func(p Ports) bool {
		return p.First <= f.Destination.Port() && f.Destination.Port() <= p.Last
	})
}

func TestRulesOfAPod(t *testing.T) {
	wire := func(name string, action mesh.EgressPolicy_Action, dryRun bool) *mesh.EgressPolicy {
		return &mesh.EgressPolicy{Name: name, Namespace: "shop", Action: action, DryRun: dryRun}
	}
	id, err := spiffe.New("cluster.local", "shop", "default")
	if err != nil {
		t.Fatal(err)
	}
	own := &workload.Workload{UID: "Kubernetes//Pod/shop/web", Namespace: "shop", Identity: id, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	published := func(ip string, policies ...string) *api.Workload {
		w := &api.Workload{Uid: own.UID, Name: "web", Namespace: "shop", ClusterId: "Kubernetes", Addresses: workloadtest.Addrs(ip)}
		if len(policies) > 0 {
			config, err := anypb.New(&mesh.EgressPolicies{Names: policies})
			if err != nil {
				t.Fatal(err)
			}
			w.Extensions = []*api.Extension{{Name: workload.EgressPoliciesExtension, Config: config}}
		}
		return w
	}
	for _, c := range []struct {
		name      string
		resources []proto.Message
		restrict  bool
		missing   []string
	}{
		{name: "nothing is said"},
		{name: "of its namespace something may be denied", resources: []proto.Message{&mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_PERMISSIVE, EgressDenied: true}}, restrict: true, missing: []string{unknownWorkload}},
		{name: "it is known, and subject to none", resources: []proto.Message{&mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_PERMISSIVE, EgressDenied: true}, published("10.0.0.1")}},
		{name: "another pod of that name is known", resources: []proto.Message{&mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_PERMISSIVE, EgressDenied: true}, published("10.0.0.9")}, restrict: true, missing: []string{unknownWorkload}},
		{name: "a policy is late", resources: []proto.Message{published("10.0.0.1", "shop/late")}, restrict: true, missing: []string{"shop/late"}},
		{name: "allowed", resources: []proto.Message{wire("open", mesh.EgressPolicy_ALLOW, false), published("10.0.0.1", "shop/open")}},
		{name: "denied", resources: []proto.Message{wire("shut", mesh.EgressPolicy_DENY, false), published("10.0.0.1", "shop/shut")}, restrict: true},
		{name: "on trial", resources: []proto.Message{wire("shut", mesh.EgressPolicy_DENY, true), published("10.0.0.1", "shop/shut")}},
	} {
		r := Of(workloadtest.Store(t, c.resources...).Snapshot(), own)
		if r.Restrict() != c.restrict || !slices.Equal(r.Missing, c.missing) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	// What cannot be read may name a policy, where there are any.
	for _, denied := range []bool{false, true} {
		store := workloadtest.Store(t, &mesh.Namespace{Name: "shop", MutualTls: mesh.MutualTLS_PERMISSIVE, EgressDenied: denied}, published("10.0.0.1"))
		newer := published("10.0.0.1", "shop/shut")
		newer.TunnelProtocol = 77
		if rejected := store.Apply(workload.Delta{Type: workload.AddressType, Upserts: []workload.Resource{workloadtest.Resource(t, newer)}}); len(rejected) != 1 {
			t.Fatal("it can be read")
		}
		if r := Of(store.Snapshot(), own); r.Restrict() != denied || denied && !slices.Equal(r.Missing, []string{unreadableWorkload}) {
			t.Errorf("unreadable, and something may be denied %v: %+v", denied, r)
		}
		workloadtest.Apply(t, store, published("10.0.0.1"))
		if r := Of(store.Snapshot(), own); r.Restrict() {
			t.Errorf("readable again, and something may be denied %v: %+v", denied, r)
		}
	}
}

func TestNamesAreKnownForTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNames()
		ip, other := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
		expect := func(when string, at netip.Addr, want ...string) {
			t.Helper()
			if got := n.Of(at); !slices.Equal(got, want) {
				t.Errorf("%s: %s is %v, want %v", when, at, got, want)
			}
		}
		n.Learn("api.example", []Address{{ip, 0}})
		n.Learn("www.example", []Address{{ip, time.Minute}, {other, 365 * 24 * time.Hour}})
		expect("at first", ip, "api.example", "www.example")
		time.Sleep(minTTL - time.Nanosecond)
		expect("to the end of the least time", ip, "api.example", "www.example")
		time.Sleep(time.Nanosecond)
		expect("after it", ip, "www.example")
		n.Learn("www.example", []Address{{ip, 0}}) // an answer from a cache, nearly over
		time.Sleep(minTTL - time.Second)
		expect("an answer that ends sooner takes nothing back", ip, "www.example")
		time.Sleep(2 * time.Second)
		expect("over", ip)
		expect("the other one", other, "www.example")
		time.Sleep(maxTTL)
		expect("not for ever", other)
		if len(n.ends) != 0 || len(n.byIP) != 0 {
			t.Errorf("left: %v, %v", n.ends, n.byIP)
		}
	})
}

func TestNamesAreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNames()
		ip, other := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
		n.Learn("api.example", []Address{{ip, time.Minute}, {other, time.Hour}})
		saved := append(n.All(), Learnt{Name: "", IP: ip, Ends: time.Now().Add(time.Hour)}, Learnt{Name: "for.ever", IP: ip, Ends: time.Now().Add(1000 * time.Hour)})
		time.Sleep(2 * time.Minute)
		next := NewNames()
		next.Restore(saved)
		if got := next.Of(other); !slices.Equal(got, []string{"api.example"}) {
			t.Errorf("%v", got)
		}
		if got := next.Of(ip); !slices.Equal(got, []string{"for.ever"}) {
			t.Errorf("over, and without a name: %v", got)
		}
		time.Sleep(maxTTL)
		if got := next.Of(ip); len(got) > 0 {
			t.Errorf("for ever: %v", got)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNames()
		n.limit = 100
		kept := netip.MustParseAddr("203.0.113.1")
		n.Learn("api.example", []Address{{kept, time.Hour}})
		for i := range 1000 {
			n.Learn(fmt.Sprintf("%d.example", i), []Address{{netip.AddrFrom4([4]byte{10, 0, byte(i / 256), byte(i)}), time.Minute}})
			time.Sleep(time.Millisecond)
		}
		if len(n.ends) != 100 || len(n.byIP) != 100 || len(n.All()) != 100 {
			t.Errorf("%d pairs, %d addresses", len(n.ends), len(n.byIP))
		}
		if got := n.Of(kept); len(got) != 1 {
			t.Errorf("what lasts longest was forgotten: %v", got)
		}
	})
}

func TestConnectionsAreCountedByPolicy(t *testing.T) {
	registry := prometheus.NewRegistry()
	own := &workload.Workload{UID: "Kubernetes//Pod/shop/web", Namespace: "shop", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	config, err := anypb.New(&mesh.EgressPolicies{Names: []string{"shop/shut", "shop/trial"}})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := workloadtest.Store(t,
		&mesh.EgressPolicy{Name: "shut", Namespace: "shop", Action: mesh.EgressPolicy_DENY, Exceptions: []*mesh.EgressException{
			{Destination: &mesh.EgressException_DnsName{DnsName: "api.example"}},
		}},
		&mesh.EgressPolicy{Name: "trial", Namespace: "shop", Action: mesh.EgressPolicy_DENY, DryRun: true},
		&api.Workload{
			Uid: own.UID, Name: "web", Namespace: "shop", ClusterId: "Kubernetes", Addresses: workloadtest.Addrs("10.0.0.1"),
			Extensions: []*api.Extension{{Name: workload.EgressPoliciesExtension, Config: config}},
		}).Snapshot()
	own, _ = snapshot.WorkloadByUID(own.UID)
	p := NewPod(func() *workload.Workload { return own }, NewMetrics(registry), slog.New(slog.DiscardHandler))
	dst := netip.MustParseAddrPort("203.0.113.7:443")
	for _, step := range []struct {
		learn          string
		want           Outcome
		refused, trial float64
	}{
		{"", Refused, 1, 1},
		{"evil.example", Refused, 2, 2},
		{"api.example", Allowed, 2, 2},
	} {
		if step.learn != "" {
			p.Names.Learn(step.learn, []Address{{dst.Addr(), time.Minute}})
		}
		if d := p.Open(snapshot, p.Flow(dst, nil)); d.Outcome != step.want {
			t.Errorf("known as %q: %+v", step.learn, d)
		}
		if refused, trial := testutil.ToFloat64(p.metrics.refused.WithLabelValues("shop/shut")), p.onTrial("TCP"); refused != step.refused || trial != step.trial {
			t.Errorf("known as %q: %v refused, %v on trial", step.learn, refused, trial)
		}
	}
}

// onTrial sums what was counted as refused on trial, of one protocol.
func (p *Pod) onTrial(protocol string) (sum float64) {
	for key := range p.metrics.trials.loggedAt {
		if key.protocol == protocol {
			sum += testutil.ToFloat64(p.metrics.trials.refused.WithLabelValues(key.policy, key.source, key.destination, key.protocol))
		}
	}
	return sum
}

// What is on trial is told by policy, source and destination, in the log once a minute, and where these are too many together.
func TestTrialsAreToldAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		own := &workload.Workload{Namespace: "shop", Name: "web", Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}}
		p := NewPod(func() *workload.Workload { return own }, NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(&log, nil)))
		rules := Rules{trial: []*workload.EgressPolicy{{Key: "shop/one", Deny: true, DryRun: true}, {Key: "shop/two", Deny: true, DryRun: true}}}
		value := func(labels ...string) float64 {
			return testutil.ToFloat64(p.metrics.trials.refused.WithLabelValues(labels...))
		}
		const source = "spiffe://cluster.local/ns/shop/sa/web"
		p.Names.Learn("api.example", []Address{{netip.MustParseAddr("203.0.113.8"), time.Hour}})
		for _, c := range []struct {
			packets               Packets
			destination, protocol string
		}{
			{Packets{17, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.7:443"), 5}, "203.0.113.7:443", "UDP"},
			{Packets{17, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.8:443"), 5}, "api.example:443", "UDP"},
			{Packets{1, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.8:0"), 5}, "api.example", "ICMP"},
			{Packets{58, netip.MustParseAddr("fd00::1"), netip.MustParseAddrPort("[2001:db8::7]:0"), 5}, "2001:db8::7", "ICMP"},
			{Packets{47, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.7:0"), 5}, "203.0.113.7", "other"},
			{Packets{6, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("203.0.113.7:80"), 5}, "203.0.113.7:80", "other"},
			{Packets{Count: 5}, "unreadable", "other"},
		} {
			log.Reset()
			for range 2 {
				p.Tried(rules, c.packets)
			}
			for _, policy := range rules.Trial() {
				if got := value(policy, source, c.destination, c.protocol); got != 10 {
					t.Errorf("%+v: %v by %s", c, got, policy)
				}
			}
			if lines := strings.Count(log.String(), "egress policy on trial would refuse"); lines != 2 {
				t.Errorf("%+v: %d lines:\n%s", c, lines, log.String())
			}
		}
		time.Sleep(trialLogEvery)
		log.Reset()
		p.Tried(rules, Packets{Count: 1})
		if lines := strings.Count(log.String(), "policy=shop/"); lines != 2 {
			t.Errorf("a minute later: %d lines", lines)
		}
		p.TriedRest(rules, 7)
		if got := value("shop/one", source, "other", "other"); got != 7 {
			t.Errorf("not told apart: %v", got)
		}
		log.Reset()
		for i := range 2 * maxTrials {
			p.Tried(rules, Packets{17, netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), uint16(i+1)), 1})
		}
		if n := testutil.CollectAndCount(p.metrics.trials.refused); n != maxTrials+1 {
			t.Errorf("%d series", n)
		}
		if lines := strings.Count(log.String(), "\n"); lines > maxTrials {
			t.Errorf("%d lines", lines)
		}
	})
}

// What policies on trial would drop is what Decide says that they would refuse.
func TestTriedIsWhatDecideWouldRefuse(t *testing.T) {
	except := func(prefix string) []workload.EgressException {
		return []workload.EgressException{{Prefix: netip.MustParsePrefix(prefix)}}
	}
	shut := &workload.EgressPolicy{Key: "shop/shut", Deny: true, Exceptions: except("203.0.113.0/25")}
	trial := &workload.EgressPolicy{Key: "shop/trial", Deny: true, DryRun: true, Exceptions: except("203.0.113.128/25")}
	for _, rules := range []Rules{
		{trial: []*workload.EgressPolicy{trial}},
		{denying: []*workload.EgressPolicy{shut}, trial: []*workload.EgressPolicy{trial}},
		{Missing: []string{"shop/late"}, trial: []*workload.EgressPolicy{trial}},
	} {
		for _, ip := range []string{"203.0.113.1", "203.0.113.200", "203.0.114.1"} {
			dst := netip.MustParseAddr(ip)
			would := len(rules.Decide(Flow{Protocol: UDP, Destination: netip.AddrPortFrom(dst, 443)}).WouldRefuse) > 0
			allowed := false
			for prefix := range rules.Tried().Static() {
				allowed = allowed || prefix.Contains(dst)
			}
			if would == allowed {
				t.Errorf("%+v: %s would be refused: %t, and is allowed in the kernel: %t", rules, ip, would, allowed)
			}
		}
	}
}
