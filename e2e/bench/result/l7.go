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

METHOD`
