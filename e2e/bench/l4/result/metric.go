package result

// Metric names what is measured.
type Metric string

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

// Metrics are all of them, in the order of the report.
var Metrics = []Metric{
	Throughput1, Throughput32, CPUPerGB1, CPUPerGB32, PingP50, PingP99, PingP999, ConnRate, CPUPer10kConns,
	IdlePerTunnel, SmallP99Alone, SmallP99BesideBulk, Throughput32OneCPU, Scaling, FilesAfterMany,
}

// about is a metric's unit and, in a few words, what it is.
type about struct {
	unit string
	// lower: less is better.
	lower bool
	title string
}

var metrics = map[Metric]about{
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

// Unit of the metric's values.
func (m Metric) Unit() string { return metrics[m].unit }

// Title says in a few words what is measured.
func (m Metric) Title() string { return metrics[m].title }

// LowerIsBetter tells which way is better.
func (m Metric) LowerIsBetter() bool { return metrics[m].lower }

// Known tells whether there is such a metric.
func (m Metric) Known() bool {
	_, ok := metrics[m]
	return ok
}
