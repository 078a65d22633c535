//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// span is one that the collector's exporter printed.
type span struct {
	trace, parent, id, name, kind string
	attributes                    map[string]string
}

var spanField = regexp.MustCompile(`^ +(Trace ID|Parent ID|ID|Name|Kind) +: ?(.*)$`)
var spanAttribute = regexp.MustCompile(`^ +-> ([a-z_.0-9]+): \w+\((.*)\)$`)

// spans reads what the collector's detailed debug exporter prints.
func spans(printed string) (all []span) {
	for line := range strings.Lines(printed) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "Span #") {
			all = append(all, span{attributes: map[string]string{}})
		}
		if strings.HasPrefix(line, "Resource") || len(all) == 0 {
			continue
		}
		s := &all[len(all)-1]
		if m := spanField.FindStringSubmatch(line); m != nil {
			*map[string]*string{"Trace ID": &s.trace, "Parent ID": &s.parent, "ID": &s.id, "Name": &s.name, "Kind": &s.kind}[m[1]] = m[2]
		} else if m := spanAttribute.FindStringSubmatch(line); m != nil {
			s.attributes[m[1]] = m[2]
		}
	}
	return all
}

const collectorConfig = `yaml:{receivers: {otlp: {protocols: {grpc: {endpoint: "0.0.0.0:4317"}}}}, exporters: {debug: {verbosity: detailed}}, ` +
	`service: {telemetry: {metrics: {level: none}}, pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}}`

// A request is a part of its client's trace at a collector, if its client wants that, and
// what the application does is a part of the request.
func TestSpansOfRequestsAtACollector(t *testing.T) {
	t.Parallel()
	observability := newPlace(t, "e2e-spans-collector", modeLabel+"=ambient")
	observability.apply(pod(podOptions{name: "collector", node: "n3", image: "ambit.mesh/peer-collector:dev", port: 4317, args: []string{"--config", collectorConfig}}) +
		service("collector", "collector", "{name: grpc, port: 4317}"))
	p := waypointedWith(t, "e2e-spans", `ambit.mesh/otlp-endpoint: "http://collector.e2e-spans-collector.svc:4317", ambit.mesh/trace-sampling: "0"`, "server")
	observability.ready("collector")
	observability.captured("collector")
	p.route(checkedRule)

	const parent = "00f067aa0ba902b7"
	trace := func(n int) string { return fmt.Sprintf("4bf92f3577b34da6a3ce929d0e0e47%02x", n) }
	const wanted, unwanted, denied = 1, 2, 3
	traced := func(n int, path, flags string) request {
		return get("http://server:8080"+path, "traceparent", "00-"+trace(n)+"-"+parent+"-"+flags, "tracestate", "vendor=x")
	}
	// The application's word for what it got: TRACE, PARENT, FLAGS.
	seen := func(a answer) (fields []string) {
		t.Helper()
		got, err := a.echoed()
		if err != nil {
			t.Fatal(err)
		}
		if fields = strings.Split(got.Header.Get("Traceparent"), "-"); len(fields) != 4 {
			t.Fatalf("the application got %v", got.Header)
		}
		return fields[1:]
	}
	var own string
	p.eventually("requests are parts of traces", func() error {
		fields := seen(p.ask("client", traced(wanted, "/echo/wanted?q=1", "01"))[0])
		if own = fields[1]; fields[0] != trace(wanted) || own == parent || fields[2] != "01" {
			return fmt.Errorf("the application got %v", fields)
		}
		return nil
	})
	if fields := seen(p.ask("client", traced(unwanted, "/echo/unwanted", "00"))[0]); fields[0] != trace(unwanted) || fields[1] == parent || fields[2] != "00" {
		t.Errorf("not wanted: the application got %v", fields)
	}
	if fields := seen(p.ask("client", get("http://server:8080/echo/unsampled"))[0]); fields[2] != "00" {
		t.Errorf("of no trace, and none is to be sampled: the application got %v", fields)
	}
	if a := p.ask("client", traced(denied, "/forbidden", "01"))[0]; a.Status != 403 {
		t.Errorf("what is forbidden was answered with %d", a.Status)
	}

	var got []span
	find := func(trace, id string) (s span, ok bool) {
		for _, s := range got {
			if s.trace == trace && (id == "" || s.id == id) {
				return s, true
			}
		}
		return span{}, false
	}
	p.within(30*time.Second, "the collector gets both spans", func() error {
		got = spans(observability.in("logs", "collector"))
		_, one := find(trace(wanted), own)
		_, other := find(trace(denied), "")
		if !one || !other {
			return fmt.Errorf("it has %+v", got)
		}
		return nil
	})
	check := func(s span, attributes map[string]string) {
		t.Helper()
		if s.parent != parent || s.name != "GET" || s.kind != "Server" {
			t.Errorf("the span is %+v", s)
		}
		for name, value := range attributes {
			if s.attributes[name] != value {
				t.Errorf("its %s is %q, want %q; it has %v", name, s.attributes[name], value, s.attributes)
			}
		}
	}
	s, _ := find(trace(wanted), own)
	check(s, map[string]string{
		"http.request.method": "GET", "url.path": "/echo/wanted", "url.query": "q=1", "server.address": "server:8080", "http.response.status_code": "200", "client.address": p.ip("client"),
		"ambit.route": "e2e-spans/server", "ambit.source.identity": "spiffe://cluster.local/ns/e2e-spans/sa/client", "ambit.source.workload": "e2e-spans/client",
		"ambit.destination.service": "server.e2e-spans.svc.cluster.local", "ambit.destination.workload": "e2e-spans/server", "ambit.response_flags": "-",
	})
	s, _ = find(trace(denied), "")
	check(s, map[string]string{"http.response.status_code": "403", "ambit.response_flags": "RBAC", "ambit.destination.service": "server.e2e-spans.svc.cluster.local"})
	for _, s := range got {
		if s.trace == trace(unwanted) || strings.Contains(s.attributes["url.path"], "un") {
			t.Errorf("nobody wanted %+v", s)
		}
	}
	if out := observability.in("logs", "collector"); !strings.Contains(out, "service.name: Str(waypoint.e2e-spans)") {
		t.Error("the collector is not told whose spans they are")
	}

	if out := p.in("logs", "-l", gatewayLabel, "--tail=-1"); !strings.Contains(out, "msg=request") || !strings.Contains(out, "trace_id="+trace(wanted)+" span_id="+own) {
		t.Error("the log does not name the span")
	}

	// Without the collector requests are none the worse.
	observability.gone("collector")
	load := p.load("-pause", "2ms", "http://server:8080/work")
	time.Sleep(3 * time.Second)
	for i := range 5 {
		if fields := seen(p.ask("client", traced(wanted, fmt.Sprint("/echo/without/", i), "01"))[0]); fields[0] != trace(wanted) {
			t.Errorf("without the collector the application got %v", fields)
		}
	}
	load.flawless("without the collector", load.end("without the collector"))
}

// What became of requests is in the log and the metrics of a waypoint, by the flags that
// operators search for, with who asked and who was asked.
func TestRequestsAreTold(t *testing.T) {
	t.Parallel()
	p := waypointedWith(t, "e2e-told", "ambit.mesh/log-format: json", "server")
	p.apply(service("empty", "nobody", "{name: http, port: 8080}") + `---
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: asked}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: CUSTOM
  provider: {service: empty, port: 8080, timeout: 100ms}
  rules: [{to: [{operation: {paths: [/echo/asked]}}]}]
`)
	p.route(`
  - name: empty
    matches: [{path: {type: PathPrefix, value: /empty}}]
    backendRefs: [{name: empty, port: 8080}]
  - name: slow
    matches: [{path: {type: Exact, value: /slow}}]
    timeouts: {request: 500ms}
    backendRefs: [{name: server, port: 8080}]
  - name: echo
    matches: [{path: {type: PathPrefix, value: /echo}}, {path: {type: Exact, value: /forbidden}}]
    backendRefs: [{name: server, port: 8080}]
`)
	p.inForce("authorizationpolicies.ambit.mesh/asked", "authorizationpolicies.ambit.mesh/nobody")
	p.answered("the routes are in force", "client", 404, get("http://server:8080/nowhere"))
	table := []struct {
		path, flag, rule string
		status           int
	}{
		{"/echo/fine", "-", "echo", 200}, {"/nowhere/else", "NR", "", 404}, {"/forbidden", "RBAC", "echo", 403}, {"/slow", "UT", "slow", 504},
		{"/empty/a", "UH", "empty", 503}, {"/echo/asked", "UAEX", "", 403}, {"/echo/%2F", "DPE", "", 400},
	}
	var all []request
	for _, c := range table {
		all = append(all, get("http://server:8080"+c.path, "x-request-id", "told-"+c.flag))
	}
	answers := p.ask("client", all...)
	type line struct {
		Msg, Direction, Method, Authority, Path, Duration, Rule, Error string
		Status                                                         int
		Flags                                                          string `json:"response_flags"`
		ID                                                             string `json:"x-request-id"`
		SrcWorkload                                                    string `json:"src.workload"`
		SrcIdentity                                                    string `json:"src.identity"`
		DstService                                                     string `json:"dst.service"`
		DstIdentity                                                    string `json:"dst.identity"`
	}
	var lines map[string]line
	p.eventually("the log has them all", func() error {
		lines = map[string]line{}
		for text := range strings.Lines(p.in("logs", "-l", gatewayLabel, "--tail=-1")) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err == nil && strings.HasPrefix(l.ID, "told-") {
				lines[strings.TrimPrefix(l.ID, "told-")] = l
			}
		}
		if len(lines) < len(table)-1 { // what is malformed has no request id
			return fmt.Errorf("it has %+v", lines)
		}
		return nil
	})
	const client, server = "spiffe://cluster.local/ns/e2e-told/sa/client", "spiffe://cluster.local/ns/e2e-told/sa/server"
	for i, c := range table {
		if answers[i].Status != c.status {
			t.Errorf("%s was answered with %d, want %d: %s", c.path, answers[i].Status, c.status, answers[i].Error)
		}
		l, ok := lines[c.flag]
		if c.flag == "DPE" && !ok {
			continue
		}
		service := "server.e2e-told.svc.cluster.local"
		if c.flag == "UH" {
			service = "empty.e2e-told.svc.cluster.local"
		}
		if l.Msg != "request" || l.Flags != c.flag || l.Status != c.status || l.Path != c.path || l.Rule != c.rule || l.Method != "GET" || l.Authority != "server:8080" || l.Direction != "waypoint" ||
			l.SrcIdentity != client || l.SrcWorkload != "client" || l.DstService != service || l.Duration == "" || (l.Error == "") != (c.flag == "-") ||
			(l.DstIdentity == server) != (c.flag == "-" || c.flag == "UT" || c.flag == "RBAC") {
			t.Errorf("%s: the line is %+v", c.path, l)
		}
	}
	pods := strings.Fields(p.in("get", "pods", "-l", gatewayLabel, "-o", "jsonpath={.items[*].status.podIP}"))
	p.eventually("the metrics have them all", func() error {
		var metrics strings.Builder
		for _, ip := range pods {
			if out, err := p.tool("client", "get", "-timeout", "3s", "http://"+ip+":15020/metrics"); err == nil {
				metrics.WriteString(out)
			}
		}
		for _, c := range table {
			destination := `destination_service_name="server"`
			if c.flag == "UH" {
				destination = `destination_service_name="empty"`
			}
			for _, name := range []string{"istio_requests_total", "istio_request_duration_milliseconds_count", "istio_request_bytes_sum", "istio_response_bytes_sum"} {
				if !hasSeries(metrics.String(), name, `reporter="waypoint"`, `source_principal="`+client+`"`, `source_workload="client"`, `source_workload_namespace="e2e-told"`,
					destination, `response_flags="`+c.flag+`"`, fmt.Sprintf(`response_code="%d"`, c.status), `connection_security_policy="mutual_tls"`, `request_protocol="http"`) {
					return fmt.Errorf("no series of %s for %s", name, c.path)
				}
			}
		}
		for _, rule := range []string{"echo", "slow", "empty"} {
			if !hasSeries(metrics.String(), "ambit_route_request_duration_milliseconds_bucket", `route="e2e-told/server"`, `rule="`+rule+`"`, `le="`) {
				return fmt.Errorf("no series of durations for the rule %s", rule)
			}
		}
		if !hasSeries(metrics.String(), "istio_requests_total", `destination_principal="`+server+`"`, `destination_workload="server"`, `response_code="200"`) {
			return fmt.Errorf("no series of istio_requests_total with the server's identity")
		}
		return nil
	})
}

// hasSeries tells whether one of a metric has all of these labels.
func hasSeries(metrics, name string, labels ...string) bool {
series:
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(line, label) {
				continue series
			}
		}
		return true
	}
	return false
}
