package conns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

func TestOneLineTellsAllOfAConnection(t *testing.T) {
	r := start(t)
	c := r.Open(t.Context(), tunnelled(Outbound))
	c.Moved(100, 0)
	c.Moved(5, 2000)
	r.clock = r.clock.Add(1500 * time.Millisecond)
	c.End(Closed, nil)
	c.End(ConnectFailed, errors.New("only the first counts"))

	line := r.onlyLine()
	for key, want := range map[string]any{
		"level": "INFO", "msg": "connection",
		"src.addr": "10.0.1.1:40000", "src.workload": "client-5d8-x", "src.namespace": "shop",
		"src.identity": "spiffe://cluster.local/ns/shop/sa/client",
		"dst.addr":     "10.0.2.1:15008", "dst.hbone_addr": "10.0.2.1:8080",
		"dst.service": "web.shop.svc.cluster.local", "dst.workload": "web-7c9-y", "dst.namespace": "shop",
		"dst.identity": "spiffe://cluster.local/ns/shop/sa/web",
		"direction":    "outbound", "transport": "hbone",
		"bytes_sent": 105.0, "bytes_recv": 2000.0, "duration": "1500ms",
		"reason": "Closed", "response_flags": "-",
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if _, ok := line["error"]; ok {
		t.Errorf("an orderly end has an error: %v", line["error"])
	}
}

// What the source sent, the destination received.
func TestBytesAreThePodsOwnView(t *testing.T) {
	r := start(t)
	c := r.Open(t.Context(), tunnelled(Inbound))
	c.Moved(7, 11)
	c.End(Closed, nil)
	if line := r.onlyLine(); line["bytes_sent"] != 11.0 || line["bytes_recv"] != 7.0 {
		t.Errorf("sent %v, received %v", line["bytes_sent"], line["bytes_recv"])
	}
}

func TestRefusedConnection(t *testing.T) {
	r := start(t)
	a := tunnelled(Inbound)
	r.Fail(a, PolicyDenied, errors.New("denied by policy \"p\""))
	line := r.onlyLine()
	if line["level"] != "WARN" || line["reason"] != "PolicyDenied" || line["response_flags"] != "DENY" || line["error"] != `denied by policy "p"` {
		t.Errorf("logged %v", line)
	}
	if n := r.total("istio_tcp_connections_failed_total"); n != 1 {
		t.Errorf("%v failed connections", n)
	}
	if n := r.total("istio_tcp_connections_opened_total"); n != 0 {
		t.Errorf("a refused connection was counted as opened")
	}
}

// Dashboards see a connection that lasts for days while it lasts. In the
// ecosystem's words received is what the client sent, whoever reports.
func TestMetricsWhileTheConnectionLives(t *testing.T) {
	for _, d := range []Direction{Outbound, Inbound} {
		r := start(t)
		c := r.Open(t.Context(), tunnelled(d))
		c.Moved(7, 11)
		for name, want := range map[string]float64{
			"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 0,
			"istio_tcp_received_bytes_total": 7, "istio_tcp_sent_bytes_total": 11, "ambit_connections": 1,
		} {
			if got := r.total(name); got != want {
				t.Errorf("%s: %s is %v, want %v", d, name, got, want)
			}
		}
		c.End(Closed, nil)
		if got := r.total("istio_tcp_connections_closed_total"); got != 1 {
			t.Errorf("%s: %v closed", d, got)
		}
		if got := r.total("ambit_connections"); got != 0 {
			t.Errorf("%s: %v live after the end", d, got)
		}
	}
}

func TestLabels(t *testing.T) {
	r := start(t)
	r.Open(t.Context(), tunnelled(Outbound)).End(Closed, nil)
	want := `
# HELP istio_tcp_connections_opened_total TCP connections opened.
# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total{connection_security_policy="mutual_tls",` +
		`destination_app="web",destination_canonical_revision="v1",destination_canonical_service="web",destination_cluster="Kubernetes",` +
		`destination_principal="spiffe://cluster.local/ns/shop/sa/web",destination_region="unknown",` +
		`destination_service="web.shop.svc.cluster.local",destination_service_name="web",destination_service_namespace="shop",` +
		`destination_version="v1",destination_workload="web",destination_workload_namespace="shop",destination_zone="unknown",` +
		`reporter="source",request_protocol="tcp",response_flags="-",` +
		`source_app="client",source_canonical_revision="v2",source_canonical_service="client",source_cluster="Kubernetes",` +
		`source_principal="spiffe://cluster.local/ns/shop/sa/client",source_region="eu",source_version="v2",` +
		`source_workload="client",source_workload_namespace="shop",source_zone="eu-1"} 1
`
	if err := testutil.GatherAndCompare(r.metricsOf, strings.NewReader(want), "istio_tcp_connections_opened_total"); err != nil {
		t.Error(err)
	}
}

func TestSeriesOfPeersLongGoneAreDropped(t *testing.T) {
	r := start(t)
	count := func() int {
		n, err := testutil.GatherAndCount(r.metricsOf, "istio_tcp_connections_opened_total")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	other := tunnelled(Outbound)
	other.Service = nil
	long := r.Open(t.Context(), other)
	for i := range 5 {
		a := tunnelled(Inbound)
		a.Source.Workload = &workload.Workload{Owner: fmt.Sprintf("job-%d", i)}
		r.Open(t.Context(), a).End(Closed, nil)
	}
	if n := count(); n != 6 {
		t.Fatalf("%d series, want 6", n)
	}
	r.clock = r.clock.Add(2 * seriesTTL)
	r.Open(t.Context(), tunnelled(Outbound)).End(Closed, nil)
	if n := count(); n != 2 {
		t.Errorf("%d series, want that of the live connection and the new one", n)
	}
	long.End(Closed, nil)
}

func TestCuttingOneConnection(t *testing.T) {
	r := start(t)
	kept := r.Open(t.Context(), tunnelled(Inbound))
	c := r.Open(t.Context(), tunnelled(Inbound))
	if live := r.Live(); len(live) != 2 {
		t.Fatalf("%d live", len(live))
	}
	denied := errors.New("policy changed")
	c.Cut(PolicyDenied, denied)
	<-c.Context().Done()
	if context.Cause(c.Context()) != denied || kept.Context().Err() != nil {
		t.Error("cut the wrong connection, or for the wrong reason")
	}
	c.End(Drained, context.Canceled) // as whoever relays it would
	if line := r.onlyLine(); line["reason"] != "PolicyDenied" || line["error"] != "policy changed" {
		t.Errorf("logged %v", line)
	}
	if live := r.Live(); len(live) != 1 || live[0] != kept {
		t.Errorf("%d live", len(live))
	}
	kept.Cut(PolicyDenied, denied)
	kept.End(Closed, nil) // it was over by itself
	const want = `
# HELP ambit_connections_cut_total Live connections that were ended because they are not admitted any more, by why.
# TYPE ambit_connections_cut_total counter
ambit_connections_cut_total{direction="inbound",reason="PolicyDenied"} 1
`
	if err := testutil.GatherAndCompare(r.metricsOf, strings.NewReader(want), "ambit_connections_cut_total"); err != nil {
		t.Error(err)
	}
}

// The labels' lookup and the record are all that a connection costs here.
func BenchmarkOpenAndEnd(b *testing.B) {
	r := New(Config{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	a := tunnelled(Outbound)
	for b.Loop() {
		c := r.Open(b.Context(), a)
		c.Moved(1, 1)
		c.End(Closed, nil)
	}
}

type rig struct {
	*Registry
	t         *testing.T
	lines     bytes.Buffer
	metricsOf *prometheus.Registry
	clock     time.Time
}

func start(t *testing.T) *rig {
	r := &rig{t: t, metricsOf: prometheus.NewRegistry(), clock: began}
	r.Registry = New(Config{
		Logger:     slog.New(slog.NewJSONHandler(&r.lines, nil)),
		Registerer: r.metricsOf,
		Now:        func() time.Time { return r.clock },
	})
	return r
}

func (r *rig) onlyLine() map[string]any {
	r.t.Helper()
	lines := strings.Split(strings.TrimSpace(r.lines.String()), "\n")
	if len(lines) != 1 {
		r.t.Fatalf("%d lines, want one: %s", len(lines), lines)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
		r.t.Fatal(err)
	}
	return line
}

// total sums a metric over all labels.
func (r *rig) total(name string) float64 {
	r.t.Helper()
	families, err := r.metricsOf.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func tunnelled(d Direction) Attempt {
	return Attempt{
		Direction: d,
		Transport: HBONE,
		Source: Peer{
			Addr:     netip.MustParseAddrPort("10.0.1.1:40000"),
			Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "client"},
			Workload: &workload.Workload{
				Name: "client-5d8-x", Namespace: "shop", Owner: "client", ClusterID: "Kubernetes",
				CanonicalName: "client", CanonicalRevision: "v2",
				Locality: workload.Locality{Region: "eu", Zone: "eu-1"},
			},
		},
		Destination: Peer{
			Addr:     netip.MustParseAddrPort("10.0.2.1:8080"),
			Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
			Workload: &workload.Workload{
				Name: "web-7c9-y", Namespace: "shop", Owner: "web", ClusterID: "Kubernetes",
				CanonicalName: "web", CanonicalRevision: "v1",
			},
		},
		Tunnel:  netip.MustParseAddrPort("10.0.2.1:15008"),
		Service: &workload.Service{Name: "web", Namespace: "shop", Hostname: "web.shop.svc.cluster.local"},
		Started: began,
	}
}
