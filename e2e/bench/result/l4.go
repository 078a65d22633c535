package result

// Variants of layer 4 that targets are about, besides those of both levels.
const (
	Splice        = "splice"
	HAProxyTuned  = "haproxy-tuned"
	NoneSameNode  = "none-same-node"
	AmbitSameNode = "ambit-same-node"
)

// Metrics of layer 4.
const (
	Throughput1        Metric = "throughput_1"
	Throughput32       Metric = "throughput_32"
	CPUPerGB1          Metric = "cpu_s_per_gb_1"
	CPUPerGB32         Metric = "cpu_s_per_gb_32"
	PingP50            Metric = "ping_p50"
	PingP99            Metric = "ping_p99"
	PingP999           Metric = "ping_p999"
	ConnRate           Metric = "conn_rate"
	CPUPer10kConns     Metric = "cpu_s_per_10k_conns"
	IdlePerTunnel      Metric = "idle_kib_per_tunnel"
	SmallP99Alone      Metric = "small_p99_alone"
	SmallP99BesideBulk Metric = "small_p99_beside_bulk"
	Throughput32OneCPU Metric = "throughput_32_1core"
	Scaling            Metric = "scaling"
	FilesAfterMany     Metric = "files_after_1m_conns"
)

var l4Metrics = map[Metric]about{
	Throughput1:        {unit: "GB/s", title: "one stream, client to server"},
	Throughput32:       {unit: "GB/s", title: "32 streams, client to server"},
	CPUPerGB1:          {unit: "s/GB", lower: true, title: "CPU time of both proxies for a GB, one stream"},
	CPUPerGB32:         {unit: "s/GB", lower: true, title: "CPU time of both proxies for a GB, 32 streams"},
	PingP50:            {unit: "us", lower: true, title: "1 KiB and back on one connection, median"},
	PingP99:            {unit: "us", lower: true, title: "1 KiB and back on one connection, 99th percentile"},
	PingP999:           {unit: "us", lower: true, title: "1 KiB and back on one connection, 99.9th percentile"},
	ConnRate:           {unit: "1/s", title: "connections: connect, 1 KiB and back, close; 8 at a time"},
	CPUPer10kConns:     {unit: "s", lower: true, title: "CPU time of both proxies for 10,000 such connections"},
	IdlePerTunnel:      {unit: "KiB", lower: true, title: "memory of the worse side for an idle connection"},
	SmallP99Alone:      {unit: "us", lower: true, title: "1 KiB and back on four connections, alone, 99th percentile"},
	SmallP99BesideBulk: {unit: "us", lower: true, title: "1 KiB and back on four connections beside ten bulk streams, 99th percentile"},
	Throughput32OneCPU: {unit: "GB/s", title: "32 streams with client, proxies and server on one CPU"},
	Scaling:            {unit: "ratio", title: "32 streams, all CPUs over one"},
	FilesAfterMany:     {unit: "files", lower: true, title: "by how many open files the worse side grew over a million connections; only on request"},
}

// L4 is the data path of layer 4.
//
// Against splice it is the engine alone that counts, as splice is alone: both
// are plain listeners. Against proxies and no mesh at all it is what is shipped.
var L4 = &Suite{
	Name:  "l4",
	Title: "Layer 4, measured",
	Metrics: []Metric{
		Throughput1, Throughput32, CPUPerGB1, CPUPerGB32, PingP50, PingP99, PingP999, ConnRate, CPUPer10kConns,
		IdlePerTunnel, SmallP99Alone, SmallP99BesideBulk, Throughput32OneCPU, Scaling, FilesAfterMany,
	},
	Targets:       l4Targets,
	EngineTargets: ofEngine(l4Targets),
	engine:        "The same asked of the engine alone, on plain listeners:",
	references:    []string{Splice, HAProxyTuned},
	charts: []chart{
		{"l4-throughput.svg", "Throughput", []Metric{Throughput1, Throughput32, Throughput32OneCPU}},
		{"l4-cpu.svg", "CPU time of both proxies", []Metric{CPUPerGB1, CPUPerGB32, CPUPer10kConns}},
		{"l4-latency.svg", "Round trips", []Metric{PingP50, PingP99, SmallP99BesideBulk}},
		{"l4-connections.svg", "Connections", []Metric{ConnRate, IdlePerTunnel}},
	},
	method: l4Method,
}

var l4Targets = []Target{
	ratio(Ambit, HAProxyTuned, Throughput1).atLeast(1.0).says("throughput, one stream"),
	ratio(Ambit, HAProxyTuned, Throughput32).atLeast(1.0).says("throughput, 32 streams"),
	ratio(AmbitBare, Splice, Throughput1).atLeast(0.38).says("throughput, one stream"),
	ratio(AmbitBare, Splice, Throughput32).atLeast(0.38).says("throughput, 32 streams"),
	ratio(Ambit, HAProxyTuned, CPUPerGB1).atMost(0.9).says("CPU for a GB, one stream"),
	ratio(Ambit, HAProxyTuned, CPUPerGB32).atMost(0.9).says("CPU for a GB, 32 streams"),
	ratio(AmbitBare, Splice, PingP50).atMost(1.1).says("round trip, median"),
	ratio(Ambit, HAProxyTuned, PingP99).atMost(1.0).says("round trip, 99th percentile"),
	ratio(Ambit, Ambit, SmallP99BesideBulk).over(SmallP99Alone).atMost(2.0).says("small round trips, 99th percentile, beside bulk over alone"),
	ratio(Ambit, HAProxy, CPUPer10kConns).inverse().atLeast(4.0).says("connections for a CPU second"),
	absolute(Ambit, IdlePerTunnel).atMost(8.0).says("memory of an idle connection, worse side"),
	ratio(AmbitSameNode, NoneSameNode, Throughput1).atLeast(0.8).says("throughput on one node, one stream"),
	ratio(AmbitSameNode, NoneSameNode, Throughput32).atLeast(0.8).says("throughput on one node, 32 streams"),
}

// Scaling are the samples of that metric, which is made of two others: in each
// round, what all CPUs carry over what one does.
func (s Samples) Scaling() Samples {
	var made Samples
	for _, x := range s {
		if x.Metric != Throughput32 {
			continue
		}
		if one, ok := s.of(x.Variant, Throughput32OneCPU)[x.Round]; ok && one > 0 {
			made = append(made, Sample{Variant: x.Variant, Metric: Scaling, Round: x.Round, Value: x.Value / one})
		}
	}
	return made
}

// l4Method is how to read the figures.
const l4Method = `## How it was measured

Client and server are pods, network namespaces on two nodes that a bridge connects. Proxy A is in the client's pod and proxy B
in the server's, as a mesh has them; "same-node" pairs are two pods of one node. All peers run TLS 1.3 with
TLS_AES_128_GCM_SHA256 and ECDSA P-256 certificates, demanded and verified on both sides; that B speaks just this, and
refuses whoever has none of these certificates, is tried before it is measured. Key exchange and resumption of sessions are
each peer's default: HAProxy, nginx and Envoy resume, which spares them most of a handshake, Ambit never does. Workers: two
threads or processes; for Go its default.

- none: the client connects to the server. splice: two plain TCP proxies in Go whose bytes stay in the kernel.
- ambit: the shipped ztunnel with its own redirection. ambit-bare: the same engine, on plain listeners, without policy, metrics, logs.
- haproxy: two in TCP mode, TLS between them; haproxy-tuned: with tune.bufsize 131072. nginx: the same with its stream
  module. envoy: HTTP/2 CONNECT over TLS, as HBONE is.

In each round and for each metric all variants run one after the other, in an order that rotates. CPU time is user and
system time of both proxies together. Bytes count when the server has read them. Memory is proportional set size: its
growth from a freshly started pair with ten connections, divided by the connections that were opened, after some seconds
of rest; the worse of the two sides. Where a process may not open files enough (splice takes six for a connection), there
are fewer. With one CPU, client, proxies and server all share it.`
