package result

// Counterparts of ambit-bare: the same peers without TLS.
const (
	HAProxyPlain = "haproxy-plain"
	NginxPlain   = "nginx-plain"
	EnvoyPlain   = "envoy-plain"
)

// Metrics of layer 7.
const (
	RPS16            Metric = "rps_16"
	RPS64            Metric = "rps_64"
	CPUPerRequest16  Metric = "cpu_us_per_request_16"
	CPUPerRequest64  Metric = "cpu_us_per_request_64"
	LatencyP50       Metric = "p50"
	LatencyP99       Metric = "p99"
	LatencyP999      Metric = "p999"
	MemoryIdle       Metric = "memory_idle_mib"
	MemoryManyRoutes Metric = "memory_1000_routes_mib"
)

var l7Metrics = map[Metric]about{
	RPS16:            {unit: "1/s", title: "requests, one after the other on each of 16 connections"},
	RPS64:            {unit: "1/s", title: "requests, one after the other on each of 64 connections"},
	CPUPerRequest16:  {unit: "us", lower: true, title: "CPU time of the proxy for a request, 16 connections"},
	CPUPerRequest64:  {unit: "us", lower: true, title: "CPU time of the proxy for a request, 64 connections"},
	LatencyP50:       {unit: "us", lower: true, title: "from when a request was due to the end of its response, at a fixed rate, median"},
	LatencyP99:       {unit: "us", lower: true, title: "the same, 99th percentile"},
	LatencyP999:      {unit: "us", lower: true, title: "the same, 99.9th percentile"},
	MemoryIdle:       {unit: "MiB", lower: true, title: "memory of the proxy with 20 routes, after a few requests"},
	MemoryManyRoutes: {unit: "MiB", lower: true, title: "memory of the proxy with 1,000 routes, after a few requests"},
}

// L7 is the waypoint.
var L7 = &Suite{
	Name:  "l7",
	Title: "Layer 7, measured",
	Metrics: []Metric{
		RPS16, RPS64, CPUPerRequest16, CPUPerRequest64, LatencyP50, LatencyP99, LatencyP999, MemoryIdle, MemoryManyRoutes,
	},
	Targets:       l7Targets,
	EngineTargets: ofEngine(l7Targets, HAProxy, HAProxyPlain, Envoy, EnvoyPlain),
	engine:        "The same asked of the engine alone, without tunnels, TLS and policy, beside the peers without TLS:",
	references:    []string{HAProxy, Envoy},
	charts: []chart{
		{"l7-requests.svg", "Requests", []Metric{RPS16, RPS64}},
		{"l7-cpu.svg", "CPU time of the proxy", []Metric{CPUPerRequest16, CPUPerRequest64}},
		{"l7-latency.svg", "Latency at a fixed rate", []Metric{LatencyP50, LatencyP99, LatencyP999}},
		{"l7-memory.svg", "Memory", []Metric{MemoryIdle, MemoryManyRoutes}},
	},
	method: l7Method,
}

var l7Targets = []Target{
	ratio(Ambit, HAProxy, RPS16).atLeast(0.8).says("requests, 16 connections"),
	ratio(Ambit, HAProxy, RPS64).atLeast(0.8).says("requests, 64 connections"),
	ratio(Ambit, Envoy, RPS16).atLeast(1.0).says("requests, 16 connections"),
	ratio(Ambit, Envoy, RPS64).atLeast(1.0).says("requests, 64 connections"),
	ratio(Ambit, Envoy, CPUPerRequest16).atMost(1.0).says("CPU for a request, 16 connections"),
	ratio(Ambit, Envoy, CPUPerRequest64).atMost(1.0).says("CPU for a request, 64 connections"),
}

// l7Method is how to read the figures.
const l7Method = `## How it was measured

Client, proxy and backends are pods, network namespaces on three nodes that bridges connect; all share the machine's CPUs, so
that requests a second tell what all of them take, and CPU time what the proxy does. Requests have no body, some 250 bytes of
head, and responses a body of 1 KiB. Every proxy carries out the same 20 routes (path prefixes, one with a header, one with two
backends by weight, one for the rest), writes an access log into a file in memory, and keeps its metrics. Every response is
looked at: its status, its length, and whether it comes from a backend that its route leads to.

- none: the client connects to a backend.
- ambit: the shipped waypoint, configured by a controller of the benchmark's own with routes and two policies; that what they
  deny is refused is tried before it is measured. Clients reach it as ztunnel does: HBONE with the client's certificate, a pool
  of few tunnels with a stream for each connection. It reaches backends likewise, by HBONE to an acceptor like ztunnel's. What
  many connections have to say at one moment then shares a write, at all three places; the peers write for each connection.
- haproxy, nginx, envoy: HTTP/1.1 over TLS on both sides, connections to backends kept and reused. TLS 1.3 with
  TLS_AES_128_GCM_SHA256 and ECDSA P-256 certificates, demanded and verified on both sides, as in the tunnels; that they speak
  just this, and refuse whoever has none of these certificates, is tried before they are measured. Two threads or processes; for Go
  its default. HAProxy and nginx write each line of their logs by itself, Envoy and Ambit many at once: their defaults.
- ambit-bare: the waypoint's engine on a plain listener, with plain endpoints: without tunnels, TLS and policy. haproxy-plain,
  nginx-plain, envoy-plain: the same peers without TLS.

In each round and for each metric all variants run one after the other, in an order that rotates. Requests are made one after
the other on each connection, which was opened before. CPU time is user and system time of the proxy. Latencies are those of an
open loop: requests are due at random moments (exponentially distributed, the same for all), whatever became of the
earlier ones; each is sent by the one of 64 connections that is free for the longest, waits if none is, and its latency begins
when it was due. Memory is proportional set size of a proxy that was started anew and has answered some requests; each is a copy of its own
program, so that it shares no code with the others.`
