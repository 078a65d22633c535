//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const gatewayLabel = "gateway.networking.k8s.io/gateway-name=waypoint"

// waypointed is an enrolled namespace whose Services are behind a waypoint: a client,
// and servers, each a pod and a Service of its name. What comes by Service `server` has the header that
// servers count by; /forbidden at port 8080 is for nobody.
func waypointed(t *testing.T, name string, servers ...string) *place {
	t.Helper()
	return waypointedWith(t, name, "", servers...)
}

// waypointedWith does so with annotations of the waypoint, as YAML.
func waypointedWith(t *testing.T, name, annotations string, servers ...string) *place {
	t.Helper()
	p := newPlace(t, name, modeLabel+"=ambient")
	manifests := `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, annotations: {` + annotations + `}}
spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
` + pod(podOptions{name: "client", node: "n1", role: "wires"})
	for i, server := range servers {
		manifests += pod(podOptions{name: server, node: fmt.Sprintf("n%d", 2+i%2), role: "wires", labels: []string{"front: server"}}) +
			service(server, server, "{name: http, port: 8080}", "{name: grpc, port: 9090}")
	}
	p.apply(manifests + `---
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/forbidden], ports: ["8080"]}}]
`)
	p.ready(append(servers, "client")...)
	p.captured(append(servers, "client")...)
	p.ambit("waypoint", "apply", "-n", name, "--enroll-namespace", "--wait=90s")
	return p
}

// ambit runs the command-line tool, and returns what it printed.
func (p *place) ambit(args ...string) string {
	p.Helper()
	out, err := p.bed.Run(p.Context(), "ambit", args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

// route applies an HTTPRoute of port 8080 of Service server, and waits until it is accepted.
func (p *place) route(rules string) {
	p.Helper()
	p.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: server}
spec:
  parentRefs: [{group: "", kind: Service, name: server, port: 8080}]
  rules:
` + rules)
	p.eventually("the route is accepted", func() error {
		var r struct {
			Metadata struct{ Generation int64 }
			Status   struct {
				Parents []struct {
					Conditions []struct {
						Type, Status, Message string
						ObservedGeneration    int64
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(p.in("get", "httproutes.gateway.networking.k8s.io", "server", "-o", "json")), &r); err != nil {
			return err
		}
		for _, parent := range r.Status.Parents {
			for _, c := range parent.Conditions {
				if c.Type == "Accepted" && c.Status == "True" && c.ObservedGeneration == r.Metadata.Generation {
					return nil
				}
			}
		}
		return fmt.Errorf("its status is %+v", r.Status)
	})
}

const checkedRule = `
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Checked, value: "yes"}]}}]
    backendRefs: [{name: server, port: 8080}]
`

// phase is what the requests of a load met between two marks.
type phase struct {
	Outcomes, Served map[string]int
	Unchecked        int
	Examples         []string
}

func (f phase) total() (n int) {
	for _, count := range f.Outcomes {
		n += count
	}
	return n
}

// loading is a client that asks all the time.
type loading struct {
	p   *place
	of  string
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func (p *place) load(args ...string) *loading {
	p.Helper()
	l := &loading{p: p, of: strings.Join(args, " ")}
	l.cmd = p.bed.Command(p.Context(), "kubectl", append([]string{"-n", p.name, "exec", "-i", "client", "--", "/usr/local/bin/shop", "tool", "load"}, args...)...)
	l.cmd.Stderr = os.Stderr
	var err error
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		p.Fatal(err)
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	l.out = json.NewDecoder(out)
	if err := l.cmd.Start(); err != nil {
		p.Fatal(err)
	}
	p.eventually("the load has begun", func() error {
		if l.mark("to begin").total() == 0 {
			return fmt.Errorf("load %s: nothing was asked yet", l.of)
		}
		return nil
	})
	return l
}

// mark ends a phase, and returns what it was.
func (l *loading) mark(what string) (f phase) {
	l.p.Helper()
	if _, err := fmt.Fprintln(l.in); err != nil {
		l.p.Fatalf("load %s: %v", l.of, err)
	}
	return l.read(what)
}

// end stops the load, and returns its last phase.
func (l *loading) end(what string) phase {
	l.p.Helper()
	l.in.Close()
	f := l.read(what)
	if err := l.cmd.Wait(); err != nil {
		l.p.Fatalf("load %s: %v", l.of, err)
	}
	return f
}

func (l *loading) read(what string) (f phase) {
	l.p.Helper()
	if err := l.out.Decode(&f); err != nil {
		l.p.Fatalf("load %s: %v", l.of, err)
	}
	l.p.Logf("%s: %s: %v served by %v %s", l.of, what, f.Outcomes, f.Served, strings.Join(f.Examples, "; "))
	return f
}

// flawless fails the test if any request failed, or there was none.
func (l *loading) flawless(what string, f phase) {
	l.p.Helper()
	if n := f.total(); n == 0 || f.Outcomes["200"] != n {
		l.p.Errorf("%s: of %d requests %d were answered: %v %v", what, n, f.Outcomes["200"], f.Outcomes, f.Examples)
	}
}

// While no pod of the waypoint lives, nothing reaches what is bound to it, by no way;
// and it comes back by itself.
func TestWithoutItsWaypointNothingReachesAService(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-dies", "server")
	outside := newPlace(t, "e2e-waypoint-dies-outside")
	outside.apply(pod(podOptions{name: "client", node: "n2", role: "wires"}))
	outside.ready("client")
	p.route(checkedRule)
	address := p.ip("server")
	works := func() error {
		out, err := p.tool("client", "get", "http://server:8080/work")
		if err == nil && !strings.Contains(out, `"checked":true`) {
			err = fmt.Errorf("answered %s", out)
		}
		return err
	}
	p.eventually("requests pass the waypoint", works)
	ledger := func() (kept struct{ Checked, Unchecked, Forbidden int }) {
		// Another port of the pod than the Service's: no waypoint stands before it.
		if err := json.Unmarshal([]byte(p.must("client", "get", "http://"+address+":7010/")), &kept); err != nil {
			t.Fatal(err)
		}
		return kept
	}
	already := ledger().Unchecked // before the route was there

	by := p.load("-timeout", "2s", "http://server:8080/work")
	past := map[string]*loading{
		"an enrolled client, to the pod":    p.load("-workers", "2", "-timeout", "1s", "http://"+address+":8080/forbidden"),
		"a client in plaintext":             outside.load("-workers", "2", "-timeout", "1s", "http://"+address+":8080/forbidden"),
		"a client in plaintext, by Service": outside.load("-workers", "2", "-timeout", "1s", "http://server."+p.name+":8080/work"),
	}
	time.Sleep(2 * time.Second)
	by.flawless("before", by.mark("before"))

	p.in("delete", "pods", "-l", gatewayLabel, "--force", "--grace-period=0")
	time.Sleep(time.Second)
	p.eventually("it is back, without any hand", works)
	if killed := by.mark("all pods killed"); killed.Outcomes["200"] == killed.total() || killed.Unchecked > 0 {
		t.Errorf("while every pod was killed: %+v", killed)
	}

	p.in("scale", "deployment/waypoint", "--replicas=0")
	p.in("wait", "--for=condition=Programmed=False", "gateway/waypoint", "--timeout=60s")
	p.in("wait", "--for=delete", "pods", "-l", gatewayLabel, "--timeout=60s")
	p.in("wait", "--for=condition=ambit.mesh/Ready=False", "service/server", "--timeout=60s")
	p.eventually("its clients are refused", func() error {
		out, err := p.tool("client", "get", "http://server:8080/work")
		if err == nil || !strings.Contains(err.Error(), "ECONNREFUSED") {
			return fmt.Errorf("answered %s %v", out, err)
		}
		return nil
	})
	by.mark("scaled down")
	time.Sleep(2 * time.Second)
	none := by.mark("none")
	// The network may take some seconds to say that a pod's address is nobody's any more.
	if n := none.Outcomes["ECONNREFUSED"]; n == 0 || n+none.Outcomes["EHOSTUNREACH"] != none.total() {
		t.Errorf("without a waypoint not all requests were refused: %v %v", none.Outcomes, none.Examples)
	}
	if out := p.ambit("waypoint", "status", "-n", p.name); !strings.Contains(out, "connections to what is bound to it are refused") {
		t.Errorf("its status does not say so:\n%s", out)
	}
	p.in("scale", "deployment/waypoint", "--replicas=1")
	p.eventually("it is back", works)
	p.in("wait", "--for=condition=ambit.mesh/Ready", "service/server", "--timeout=60s")
	time.Sleep(time.Second)
	by.mark("scaled up")
	time.Sleep(time.Second)
	by.flawless("after", by.end("after"))

	for who, l := range past {
		if f := l.end(who); f.total() == 0 || f.Outcomes["200"] > 0 {
			t.Errorf("%s got past the waypoint, or never asked: %v", who, f.Outcomes)
		}
	}
	if kept := ledger(); kept.Checked == 0 || kept.Unchecked != already || kept.Forbidden > 0 {
		t.Errorf("the application counts %+v, and %d unchecked before the route was there", kept, already)
	}
}

// Who does not come by the Service comes through the waypoint all the same, or not at all.
func TestNobodyGetsPastAWaypoint(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-past", "server")
	outside := newPlace(t, "e2e-waypoint-past-outside")
	outside.apply(pod(podOptions{name: "client", node: "n1", role: "wires"}) + pod(podOptions{name: "neighbour", node: "n2", role: "wires"}))
	outside.ready("client", "neighbour")
	address := p.ip("server")
	const denied = "403"

	p.must("client", "get", "http://server:8080/whoami")
	if out := p.must("client", "get", "http://"+address+":8080/whoami"); !strings.Contains(out, p.ip("client")+":") {
		t.Errorf("the application sees another client than %s: %s", p.ip("client"), out)
	}
	for _, url := range []string{"http://server:8080/forbidden", "http://" + address + ":8080/forbidden"} {
		if out, err := p.tool("client", "get", url); err == nil || !strings.Contains(err.Error(), denied) {
			t.Errorf("GET %s was answered with %s %v, want %s", url, out, err, denied)
		}
	}
	for _, client := range []string{"client", "neighbour"} {
		for _, url := range []string{"http://server." + p.name + ":8080/whoami", "http://" + address + ":8080/whoami"} {
			if out, err := outside.tool(client, "get", "-timeout", "3s", url); err == nil {
				t.Errorf("GET %s in plaintext by %s was answered with %s", url, client, out)
			}
		}
		outside.must(client, "get", "http://"+address+":7010/") // another port
	}
	if out := p.must("client", "get", "http://"+address+":7010/"); !strings.Contains(out, `"forbidden":0`) {
		t.Errorf("the application counts %s", out)
	}
	if out := p.in("get", "workloads.ambit.mesh", "server"); !strings.Contains(out, p.name+"/waypoint") {
		t.Errorf("kubectl get workloads does not show its waypoint:\n%s", out)
	}
	if out, err := p.bed.Run(t.Context(), "ambit", "waypoint", "delete", "-n", p.name); err == nil || !strings.Contains(err.Error(), "Service "+p.name+"/server") {
		t.Errorf("a waypoint that is in use was deleted: %s %v", out, err)
	}
}

// share tells whether a share of n requests is none that chance gives.
func share(got, n int, want float64) error {
	const sigmas = 5 // one false alarm in two million
	deviation := sigmas * math.Sqrt(want*(1-want)/float64(n))
	if share := float64(got) / float64(n); n < 100 || math.Abs(share-want) > deviation {
		return fmt.Errorf("%d of %d requests, a share of %.3f, want %.2f ± %.3f", got, n, share, want, deviation)
	}
	return nil
}

// Shares are shifted while clients ask, and no request fails.
func TestACanaryIsShiftedUnderLoad(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-canary", "server", "canary")
	weighted := func(server, canary int) string {
		return fmt.Sprintf(`
  - matches: [{headers: [{name: X-Canary, value: always}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Checked, value: "yes"}]}}]
    backendRefs: [{name: canary, port: 8080}]
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Checked, value: "yes"}]}}]
    backendRefs: [{name: server, port: 8080, weight: %d}, {name: canary, port: 8080, weight: %d}]
`, server, canary)
	}
	p.route(weighted(90, 10))
	p.eventually("the route is in force", func() error {
		out, err := p.tool("client", "get", "http://server:8080/work")
		if err == nil && !strings.Contains(out, `"checked":true`) {
			err = fmt.Errorf("answered %s", out)
		}
		return err
	})
	all, chosen := p.load("-pause", "2ms", "http://server:8080/work"), p.load("-workers", "2", "-header", "X-Canary:always", "http://server:8080/work")
	for i, weights := range [][2]int{{90, 10}, {50, 50}, {0, 100}} {
		if i > 0 {
			p.route(weighted(weights[0], weights[1]))
		}
		what := fmt.Sprintf("%d/%d", weights[0], weights[1])
		// What is accepted is on its way to the waypoint: it may take another look.
		p.within(20*time.Second, what, func() error {
			time.Sleep(time.Second)
			all.flawless("while it shifts", all.mark("while it shifts"))
			time.Sleep(3 * time.Second)
			f := all.mark(what)
			all.flawless(what, f)
			if f.Unchecked > 0 {
				t.Errorf("%s: %d requests without the header", what, f.Unchecked)
			}
			return share(f.Served["canary@n3"], f.total(), float64(weights[1])/100)
		})
	}
	all.flawless("at the end", all.end("at the end"))
	f := chosen.end("by header")
	chosen.flawless("by header", f)
	if f.Served["canary@n3"] != f.total() {
		t.Errorf("by header: served by %v", f.Served)
	}
}

// held is what became of a long stream.
type held struct {
	Pieces int
	Last   time.Time
	Gap    time.Duration
	Ended  string
}

// stays opens a stream, and returns what tells what became of it, once that is over.
func (p *place) stays(url string) <-chan held {
	p.Helper()
	cmd := p.bed.Command(p.Context(), "kubectl", "-n", p.name, "exec", "client", "--", "/usr/local/bin/shop", "tool", "hold", url)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		p.Fatalf("hold %s said %q, %v", url, line, err)
	}
	over := make(chan held, 1)
	go func() {
		var h held
		if err := json.NewDecoder(lines).Decode(&h); err != nil {
			h.Ended = err.Error()
		}
		cmd.Wait()
		over <- h
	}()
	return over
}

// Long streams live through changes of policies and routes that go on to admit them, and
// through a rollout of the waypoint up to the deadline that ends them.
func TestStreamsOutliveARolloutUpToItsDeadline(t *testing.T) {
	t.Parallel()
	// deadline is what a waypoint that is told to end gives its connections: the pod's
	// grace, less what is kept for the end itself.
	const deadline = 40 * time.Second
	p := waypointed(t, "e2e-waypoint-streams", "server")
	p.route(checkedRule)
	open := func() map[string]<-chan held {
		return map[string]<-chan held{
			"a body without an end": p.stays("http://server:8080/stream"),
			"a WebSocket":           p.stays("ws://server:8080/live"),
			"a stream of gRPC":      p.stays("grpc://server:9090"),
		}
	}
	streams := open()
	all := p.load("http://server:8080/work")
	none := func(when string) {
		t.Helper()
		for name, over := range streams {
			select {
			case h := <-over:
				t.Fatalf("%s: %s ended: %+v", when, name, h)
			default:
			}
		}
	}
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: those}
spec:
  action: ALLOW
  rules:
  - from: [{source: {serviceAccounts: [client]}}]
    to: [{operation: {methods: [GET, POST], ports: ["8080", "9090"]}}]
`)
	p.in("wait", "--for=condition=InForce", "authorizationpolicies.ambit.mesh/those", "--timeout=60s")
	p.route(strings.ReplaceAll(checkedRule, `"yes"`, `"again"`))
	time.Sleep(2 * time.Second)
	none("after a change of policies and routes")
	all.flawless("while policies and routes change", all.mark("while policies and routes change"))

	began := time.Now()
	p.in("rollout", "restart", "deployment/waypoint")
	p.in("rollout", "status", "deployment/waypoint", "--timeout=60s")
	replaced := time.Now()
	time.Sleep(deadline / 2)
	none("half of the deadline after a rollout")
	for name, over := range streams {
		select {
		case h := <-over:
			t.Logf("%s: %+v, %s after the rollout began", name, h, h.Last.Sub(began))
			if h.Last.Before(replaced.Add(deadline/2)) || h.Last.After(replaced.Add(deadline+5*time.Second)) {
				t.Errorf("%s ended %s after the rollout, want about %s", name, h.Last.Sub(replaced), deadline)
			}
			if h.Gap > 3*time.Second {
				t.Errorf("%s stood still for %s", name, h.Gap)
			}
		case <-time.After(deadline):
			t.Errorf("%s goes on %s after the rollout", name, time.Since(replaced))
		}
	}
	all.flawless("while the waypoint is replaced", all.end("while the waypoint is replaced"))
	for name, over := range open() {
		select {
		case h := <-over:
			t.Errorf("%s, once more, ended: %+v", name, h)
		case <-time.After(time.Second):
		}
	}
}

// A Service is put behind a waypoint, and taken from there, while clients ask: nobody's new
// connection fails, and who came through the waypoint leaves it in order. (Connections that
// are older than the binding have some seconds to end.)
func TestBindingFailsNoRequest(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-binds", "server")
	p.in("delete", "authorizationpolicies.ambit.mesh", "nobody") // which, without a waypoint, denies the port
	p.label("ambit.mesh/use-waypoint-")
	unbound := func() {
		t.Helper()
		p.eventually("it is not bound any more", func() error {
			if out := p.in("get", "service", "server", "-o", "jsonpath={.status.conditions}"); out != "" {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	unbound()
	fresh := p.load("-pause", "2ms", "-connections", "fresh", "http://server:8080/work")
	ztunnel := p.ztunnel("n2")
	metrics := "http://" + strings.TrimSpace(p.kubectl("-n", "ambit-system", "get", "pod", ztunnel, "-o", "jsonpath={.status.podIP}")) + ":15020/metrics"
	older, began := p.stays("http://server:8080/stream"), time.Now()
	p.label("ambit.mesh/use-waypoint=waypoint")
	p.in("wait", "--for=condition=ambit.mesh/Bound", "service/server", "--timeout=60s")
	fresh.flawless("while it is bound", fresh.mark("while it is bound"))
	select {
	case h := <-older:
		if lived := h.Last.Sub(began); lived < 5*time.Second {
			t.Errorf("a connection that is older than the binding had %s to end: %+v", lived, h)
		}
	case <-time.After(5 * time.Second):
		t.Error("a connection that is older than the binding goes on past the waypoint")
	}
	p.eventually("that it was cut is counted and logged", func() error {
		const series = `ambit_connections_cut_total{direction="inbound",reason="WaypointBypassed"}`
		if all := p.must("client", "get", metrics); !strings.Contains(all, series) {
			return fmt.Errorf("no series %s", series)
		}
		const said = "no longer admitted, for it is older than the waypoint's binding: denied by policy e2e-waypoint-binds/waypoint_only"
		if log := p.kubectl("-n", "ambit-system", "logs", ztunnel, "--tail=-1"); !strings.Contains(log, said) {
			return fmt.Errorf("nothing in the log that says %q", said)
		}
		return nil
	})
	kept := p.load("-pause", "2ms", "-connections", "kept", "http://server:8080/work")
	time.Sleep(time.Second)
	p.label("ambit.mesh/use-waypoint-")
	unbound()
	fresh.flawless("while it is let go", fresh.mark("while it is let go"))
	kept.flawless("kept connections, while it is let go", kept.end("kept connections"))
	fresh.flawless("at the end", fresh.end("at the end"))
}

// From one waypoint to another, while clients ask: nobody's new connection fails, who came
// through the one before leaves it in order, and no request goes unchecked by either.
func TestMovingToAnotherWaypointFailsNoRequest(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-moves", "server")
	p.route(checkedRule)
	p.ambit("waypoint", "apply", "-n", p.name, "--name", "another", "--wait=90s")
	address := p.ip("server")
	served := func(waypoint string) {
		t.Helper()
		p.eventually(waypoint+" stands before it alone", func() error {
			out := p.in("get", "service", "server", "-o", `jsonpath={.status.conditions[?(@.type=="ambit.mesh/Bound")].message}`)
			if out != "clients go through waypoint "+p.name+"/"+waypoint+", and nobody else is let in" {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	served("waypoint")
	p.eventually("the route is in force", func() error {
		out, err := p.tool("client", "get", "http://server:8080/work")
		if err == nil && !strings.Contains(out, `"checked":true`) {
			err = fmt.Errorf("answered %s", out)
		}
		return err
	})
	fresh := p.load("-pause", "2ms", "-connections", "fresh", "http://server:8080/work")
	kept := p.load("-pause", "2ms", "-connections", "kept", "http://server:8080/work")
	forbidden := map[string]*loading{
		"by Service": p.load("-workers", "2", "-pause", "2ms", "-connections", "fresh", "http://server:8080/forbidden"),
		"by pod":     p.load("-workers", "2", "-pause", "2ms", "-connections", "fresh", "http://"+address+":8080/forbidden"),
	}
	for _, waypoint := range []string{"another", "waypoint"} {
		p.label("ambit.mesh/use-waypoint=" + waypoint)
		served(waypoint)
		time.Sleep(time.Second)
		for what, l := range map[string]*loading{"fresh connections": fresh, "kept connections": kept} {
			f := l.mark(what + ", to " + waypoint)
			l.flawless(what+", to "+waypoint, f)
			if f.Unchecked > 0 {
				t.Errorf("%s, to %s: %d requests unchecked", what, waypoint, f.Unchecked)
			}
		}
		for what, l := range forbidden {
			if f := l.mark("forbidden, " + what); f.total() == 0 || f.Outcomes["403"] != f.total() {
				t.Errorf("what is forbidden, asked %s, on the way to %s: %v %v", what, waypoint, f.Outcomes, f.Examples)
			}
		}
	}
	// The one before may go now.
	p.ambit("waypoint", "delete", "-n", p.name, "another")
	time.Sleep(2 * time.Second)
	fresh.flawless("at the end", fresh.end("at the end"))
	kept.flawless("at the end, kept connections", kept.end("at the end"))
	for _, l := range forbidden {
		l.end("at the end")
	}
}

// A Service that is not bound, and uses a port of pods behind one that is, is refused, and
// that is told where people look; unless the owner of what is bound does without: then it
// goes past a waypoint that has no pod as well.
func TestAContestedPortAndWhoDoesWithout(t *testing.T) {
	t.Parallel()
	p := waypointed(t, "e2e-waypoint-contested", "server")
	p.in("delete", "authorizationpolicies.ambit.mesh", "nobody") // which, without a waypoint, denies the port
	says := func(service, reason string) {
		t.Helper()
		p.eventually("Service "+service+" says "+reason, func() error {
			if out := p.in("get", "service", service, "-o", `jsonpath={.status.conditions[?(@.type=="ambit.mesh/Bound")].reason}`); out != reason {
				return fmt.Errorf("it says %q", out)
			}
			return nil
		})
	}
	answers := func(url string, want bool) {
		t.Helper()
		p.eventually(fmt.Sprintf("GET %s is answered: %t", url, want), func() error {
			out, err := p.tool("client", "get", "-timeout", "2s", url)
			if (err == nil) != want {
				return fmt.Errorf("it is: %s %v", out, err)
			}
			return nil
		})
	}
	says("server", "InForce")
	p.apply(strings.Replace(service("other", "server", "{name: http, port: 8080}", "{name: echo, port: 7001}"), "{name: other}", "{name: other, labels: {ambit.mesh/use-waypoint: none}}", 1))
	says("other", "PortConflict")
	answers("http://other:8080/whoami", false)
	answers("http://server:8080/whoami", true)
	p.checkSays("AMB020", "Service "+p.name+"/other", "uses port 8080 of pods behind waypoint", "label service other")
	if out := p.in("get", "gateway", "waypoint", "-o", `jsonpath={.status.conditions[?(@.type=="ambit.mesh/Bound")]}`); !strings.Contains(out, "Refused") || !strings.Contains(out, "Service "+p.name+"/other") {
		t.Errorf("the Gateway does not say so: %s", out)
	}
	if out := p.ambit("waypoint", "status", "-n", p.name); !strings.Contains(out, "PortConflict") {
		t.Errorf("its status does not say so:\n%s", out)
	}

	p.in("annotate", "service", "server", "ambit.mesh/waypoint-fallback=direct")
	says("server", "Direct")
	says("other", "")
	answers("http://other:8080/whoami", true)
	p.in("scale", "deployment/waypoint", "--replicas=0")
	p.in("wait", "--for=condition=ambit.mesh/Ready=False", "service/server", "--timeout=90s")
	answers("http://server:8080/whoami", true)
	if out := p.ambit("waypoint", "status", "-n", p.name); !strings.Contains(out, "Direct") {
		t.Errorf("its status does not say that it is reached without:\n%s", out)
	}
	p.in("annotate", "service", "server", "ambit.mesh/waypoint-fallback-")
	answers("http://server:8080/whoami", false)
	answers("http://other:8080/whoami", false)
	p.in("scale", "deployment/waypoint", "--replicas=1")
	answers("http://server:8080/whoami", true)
}
