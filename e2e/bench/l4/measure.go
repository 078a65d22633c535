package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/process"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/result"
)

// The loads.
const (
	manyStreams   = 32
	churnWorkers  = 8
	smallStreams  = 4
	besideStreams = 10
	// warmConnections are opened before idle ones count: what a proxy sets up
	// once is not theirs.
	warmConnections = 10
)

// values are what one measurement gives.
type values map[result.Metric]float64

// group is metrics that are measured together.
type group struct {
	name    string
	metrics []result.Metric
	// sameNode: pods of one node are measured too.
	sameNode bool
	// proxied: there is nothing to measure without proxies.
	proxied bool
	// onRequest: it takes too long to be measured unless it is named.
	onRequest bool
	// rounds are those in which it is measured, of all that there are.
	rounds  func(settings) int
	measure func(context.Context, settings, *lane) (values, error)
}

var groups = []group{
	{name: "throughput, one stream", rounds: always, sameNode: true, measure: bulkOf(1),
		metrics: []result.Metric{result.Throughput1, result.CPUPerGB1}},
	{name: "throughput, 32 streams", rounds: always, sameNode: true, measure: bulkOf(manyStreams),
		metrics: []result.Metric{result.Throughput32, result.CPUPerGB32}},
	{name: "throughput, one CPU", rounds: slowly, measure: oneCPU,
		metrics: []result.Metric{result.Throughput32OneCPU}},
	{name: "round trips", rounds: always, sameNode: true, measure: roundTrips,
		metrics: []result.Metric{result.PingP50, result.PingP99, result.PingP999}},
	{name: "new connections", rounds: always, measure: newConnections,
		metrics: []result.Metric{result.ConnRate, result.CPUPer10kConns}},
	{name: "small, alone", rounds: always, measure: smallAlone,
		metrics: []result.Metric{result.SmallP99Alone}},
	{name: "small, beside bulk", rounds: slowly, measure: smallBesideBulk,
		metrics: []result.Metric{result.SmallP99BesideBulk}},
	{name: "idle connections", proxied: true, rounds: rarely, measure: idleMemory,
		metrics: []result.Metric{result.IdlePerTunnel}},
	{name: "a million connections", proxied: true, onRequest: true, rounds: once, measure: manyConnections,
		metrics: []result.Metric{result.FilesAfterMany}},
}

func always(s settings) int { return s.rounds }
func slowly(s settings) int { return min(s.rounds, s.slowRounds) }
func rarely(s settings) int { return min(s.rounds, s.idleRounds) }
func once(settings) int     { return 1 }

// window runs a client's load and returns what was spent while it counted.
func window(ctx context.Context, s settings, l *lane, client load.Generator, kind load.Kind, n int, warm time.Duration) (spent, load.Latencies, error) {
	if err := client.Start(kind, l.to(), n); err != nil {
		return spent{}, load.Latencies{}, err
	}
	during, err := count(ctx, s, l, client, warm)
	latencies, stopErr := client.StopLoad()
	return during, latencies, errors.Join(err, stopErr)
}

func count(ctx context.Context, s settings, l *lane, client load.Generator, warm time.Duration) (spent, error) {
	if err := pause(ctx, warm); err != nil {
		return spent{}, err
	}
	begin, err := l.read(client)
	if err != nil {
		return spent{}, err
	}
	if err := pause(ctx, s.window); err != nil {
		return spent{}, err
	}
	end, err := l.read(client)
	return between(begin, end), err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const (
	giga    = 1e9
	kibi    = 1024
	batched = 10_000 // connections that CPU time is given for
)

func bulkOf(streams int) func(context.Context, settings, *lane) (values, error) {
	throughput, cpu := result.Throughput1, result.CPUPerGB1
	if streams > 1 {
		throughput, cpu = result.Throughput32, result.CPUPerGB32
	}
	return func(ctx context.Context, s settings, l *lane) (values, error) {
		during, _, err := window(ctx, s, l, l.client, load.Bulk, streams, s.warm)
		if err != nil {
			return nil, err
		}
		if during.bytes == 0 {
			return nil, errors.New("no byte arrived")
		}
		v := values{throughput: during.bytes / giga / during.seconds}
		if len(l.proxies()) > 0 {
			v[cpu] = during.cpuSeconds / (during.bytes / giga)
		}
		return v, nil
	}
}

// oneCPU has everything that takes part share one CPU.
func oneCPU(ctx context.Context, s settings, l *lane) (_ values, err error) {
	every, err := process.CPUs()
	if err != nil {
		return nil, err
	}
	pids := l.all()
	defer func() { err = errors.Join(err, process.Pin(pids, every)) }()
	if err := process.Pin(pids, process.OneOf(every)); err != nil {
		return nil, err
	}
	during, _, err := window(ctx, s, l, l.client, load.Bulk, manyStreams, s.adapt)
	if err != nil {
		return nil, err
	}
	return values{result.Throughput32OneCPU: during.bytes / giga / during.seconds}, nil
}

func roundTrips(ctx context.Context, s settings, l *lane) (values, error) {
	_, latencies, err := window(ctx, s, l, l.client, load.Ping, 1, s.warm)
	if err != nil {
		return nil, err
	}
	return values{
		result.PingP50: micros(latencies.P50), result.PingP99: micros(latencies.P99), result.PingP999: micros(latencies.P999),
	}, enough(latencies, 1)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// enough demands a round trip for each connection. Of less than a hundred the
// 99th percentile is the largest: so be it for a variant that takes so long.
func enough(l load.Latencies, conns int) error {
	if l.Samples < conns {
		return fmt.Errorf("%d round trips on %d connections", l.Samples, conns)
	}
	return nil
}

func newConnections(ctx context.Context, s settings, l *lane) (values, error) {
	during, _, err := window(ctx, s, l, l.client, load.Churn, churnWorkers, s.warm)
	if err != nil {
		return nil, err
	}
	if during.count == 0 {
		return nil, errors.New("no connection was made")
	}
	v := values{result.ConnRate: during.count / during.seconds}
	if len(l.proxies()) > 0 {
		v[result.CPUPer10kConns] = during.cpuSeconds * batched / during.count
	}
	return v, nil
}

// manyConnections opens and closes s.many connections, one after the other on each
// of a few workers, and looks at what has stayed open.
func manyConnections(ctx context.Context, s settings, l *lane) (_ values, err error) {
	if _, _, err := window(ctx, s, l, l.client, load.Churn, churnWorkers, s.warm); err != nil {
		return nil, err
	}
	if err := pause(ctx, s.settle); err != nil {
		return nil, err
	}
	before, err := l.openFiles()
	if err != nil {
		return nil, err
	}
	if err := l.client.Start(load.Churn, l.to(), churnWorkers); err != nil {
		return nil, err
	}
	for made, deadline := int64(0), time.Now().Add(manyTimeout); made < int64(s.many); {
		if err = pause(ctx, time.Second); err == nil {
			made, err = l.client.Mark()
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("%d connections in %s", made, manyTimeout)
		}
		if err != nil {
			break
		}
	}
	_, stopErr := l.client.StopLoad()
	if err := errors.Join(err, stopErr, pause(ctx, s.settle)); err != nil {
		return nil, err
	}
	after, err := l.openFiles()
	if err != nil {
		return nil, err
	}
	return values{result.FilesAfterMany: float64(max(after.client-before.client, after.server-before.server))}, nil
}

// manyTimeout is several times what a million connections take.
const manyTimeout = 40 * time.Minute

func smallAlone(ctx context.Context, s settings, l *lane) (values, error) {
	_, latencies, err := window(ctx, s, l, l.client, load.Ping, smallStreams, s.warm)
	if err != nil {
		return nil, err
	}
	return values{result.SmallP99Alone: micros(latencies.P99)}, enough(latencies, smallStreams)
}

func smallBesideBulk(ctx context.Context, s settings, l *lane) (_ values, err error) {
	s.window = s.beside
	if err := l.beside.Start(load.Bulk, l.to(), besideStreams); err != nil {
		return nil, err
	}
	defer func() {
		_, stopErr := l.beside.StopLoad()
		err = errors.Join(err, stopErr)
	}()
	_, latencies, err := window(ctx, s, l, l.client, load.Ping, smallStreams, s.warm)
	if err != nil {
		return nil, err
	}
	return values{result.SmallP99BesideBulk: micros(latencies.P99)}, enough(latencies, smallStreams)
}

// idleMemory starts the variant anew: what earlier loads made it hold would hide
// the growth.
func idleMemory(ctx context.Context, s settings, l *lane) (_ values, err error) {
	if err := errors.Join(l.stop(), l.start(ctx)); err != nil {
		return nil, err
	}
	if err := l.client.Start(load.Idle, l.to(), warmConnections); err != nil {
		return nil, err
	}
	if _, err := l.client.StopLoad(); err != nil {
		return nil, err
	}
	if err := pause(ctx, s.settle/2); err != nil {
		return nil, err
	}
	before, err := l.memory()
	if err != nil {
		return nil, err
	}
	if err := l.client.Start(load.Idle, l.to(), l.idle); err != nil {
		return nil, err
	}
	defer func() {
		_, stopErr := l.client.StopLoad()
		err = errors.Join(err, stopErr)
	}()
	if err := pause(ctx, s.settle); err != nil {
		return nil, err
	}
	after, err := l.memory()
	if err != nil {
		return nil, err
	}
	growth := max(after.client-before.client, after.server-before.server)
	return values{result.IdlePerTunnel: float64(growth) / kibi / float64(l.idle)}, nil
}

// sides is a figure of each side.
type sides struct{ client, server int64 }

// openFiles of both sides.
func (l *lane) openFiles() (m sides, err error) {
	client, server := l.path.Processes()
	if m.client, err = process.OpenFiles(client); err != nil {
		return m, err
	}
	m.server, err = process.OpenFiles(server)
	return m, err
}

func (l *lane) memory() (m sides, err error) {
	client, server := l.path.Processes()
	if m.client, err = process.Memory(client); err != nil {
		return m, err
	}
	m.server, err = process.Memory(server)
	return m, err
}
