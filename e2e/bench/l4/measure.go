package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/load"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
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

// groups are what is measured, with these settings.
func groups(s settings) []rounds.Group[*lane] {
	with := func(measure func(context.Context, settings, *lane) (rounds.Values, error)) func(context.Context, *lane) (rounds.Values, error) {
		return func(ctx context.Context, l *lane) (rounds.Values, error) { return measure(ctx, s, l) }
	}
	// Pods of one node are asked for a few metrics alone, and what proxies take not
	// where there are none.
	apart := func(l *lane) bool { return !l.variant.SameNode }
	proxied := func(l *lane) bool { return apart(l) && len(l.proxies()) > 0 }
	slow := min(s.rounds, s.slowRounds)
	return []rounds.Group[*lane]{
		{Name: "throughput, one stream", Rounds: s.rounds, Measure: with(bulkOf(1)),
			Metrics: []result.Metric{result.Throughput1, result.CPUPerGB1}},
		{Name: "throughput, 32 streams", Rounds: s.rounds, Measure: with(bulkOf(manyStreams)),
			Metrics: []result.Metric{result.Throughput32, result.CPUPerGB32}},
		{Name: "throughput, one CPU", Rounds: slow, Takes: apart, Measure: with(oneCPU),
			Metrics: []result.Metric{result.Throughput32OneCPU}},
		{Name: "round trips", Rounds: s.rounds, Measure: with(roundTrips),
			Metrics: []result.Metric{result.PingP50, result.PingP99, result.PingP999}},
		{Name: "new connections", Rounds: s.rounds, Takes: apart, Measure: with(newConnections),
			Metrics: []result.Metric{result.ConnRate, result.CPUPer10kConns}},
		{Name: "small, alone", Rounds: s.rounds, Takes: apart, Measure: with(smallAlone),
			Metrics: []result.Metric{result.SmallP99Alone}},
		{Name: "small, beside bulk", Rounds: slow, Takes: apart, Measure: with(smallBesideBulk),
			Metrics: []result.Metric{result.SmallP99BesideBulk}},
		{Name: "idle connections", Rounds: min(s.rounds, s.idleRounds), Takes: proxied, Measure: with(idleMemory),
			Metrics: []result.Metric{result.IdlePerTunnel}},
		{Name: "a million connections", Rounds: 1, Takes: proxied, OnRequest: true, Measure: with(manyConnections),
			Metrics: []result.Metric{result.FilesAfterMany}},
	}
}

// chosenGroups are those that hold any of the metrics that are wanted.
func chosenGroups(s settings) ([]rounds.Group[*lane], error) {
	wanted := s.groups
	if i := slices.Index(wanted, string(result.Scaling)); i >= 0 { // made of two
		wanted = slices.Replace(slices.Clone(wanted), i, i+1, string(result.Throughput32), string(result.Throughput32OneCPU))
	}
	return rounds.Chosen(groups(s), wanted)
}

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

func bulkOf(streams int) func(context.Context, settings, *lane) (rounds.Values, error) {
	throughput, cpu := result.Throughput1, result.CPUPerGB1
	if streams > 1 {
		throughput, cpu = result.Throughput32, result.CPUPerGB32
	}
	return func(ctx context.Context, s settings, l *lane) (rounds.Values, error) {
		during, _, err := window(ctx, s, l, l.client, load.Bulk, streams, s.warm)
		if err != nil {
			return nil, err
		}
		if during.bytes == 0 {
			return nil, errors.New("no byte arrived")
		}
		v := rounds.Values{throughput: during.bytes / giga / during.seconds}
		if len(l.proxies()) > 0 {
			v[cpu] = during.cpuSeconds / (during.bytes / giga)
		}
		return v, nil
	}
}

// oneCPU has everything that takes part share one CPU.
func oneCPU(ctx context.Context, s settings, l *lane) (_ rounds.Values, err error) {
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
	return rounds.Values{result.Throughput32OneCPU: during.bytes / giga / during.seconds}, nil
}

func roundTrips(ctx context.Context, s settings, l *lane) (rounds.Values, error) {
	_, latencies, err := window(ctx, s, l, l.client, load.Ping, 1, s.warm)
	if err != nil {
		return nil, err
	}
	return rounds.Values{
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

func newConnections(ctx context.Context, s settings, l *lane) (rounds.Values, error) {
	during, _, err := window(ctx, s, l, l.client, load.Churn, churnWorkers, s.warm)
	if err != nil {
		return nil, err
	}
	if during.count == 0 {
		return nil, errors.New("no connection was made")
	}
	v := rounds.Values{result.ConnRate: during.count / during.seconds}
	if len(l.proxies()) > 0 {
		v[result.CPUPer10kConns] = during.cpuSeconds * batched / during.count
	}
	return v, nil
}

// manyConnections opens and closes s.many connections, one after the other on each
// of a few workers, and looks at what has stayed open.
func manyConnections(ctx context.Context, s settings, l *lane) (_ rounds.Values, err error) {
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
	return rounds.Values{result.FilesAfterMany: float64(max(after.client-before.client, after.server-before.server))}, nil
}

// manyTimeout is several times what a million connections take.
const manyTimeout = 40 * time.Minute

func smallAlone(ctx context.Context, s settings, l *lane) (rounds.Values, error) {
	_, latencies, err := window(ctx, s, l, l.client, load.Ping, smallStreams, s.warm)
	if err != nil {
		return nil, err
	}
	return rounds.Values{result.SmallP99Alone: micros(latencies.P99)}, enough(latencies, smallStreams)
}

func smallBesideBulk(ctx context.Context, s settings, l *lane) (_ rounds.Values, err error) {
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
	return rounds.Values{result.SmallP99BesideBulk: micros(latencies.P99)}, enough(latencies, smallStreams)
}

// idleMemory starts the variant anew: what earlier loads made it hold would hide
// the growth.
func idleMemory(ctx context.Context, s settings, l *lane) (_ rounds.Values, err error) {
	if err := errors.Join(l.Stop(), l.Start(ctx)); err != nil {
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
	return rounds.Values{result.IdlePerTunnel: float64(growth) / kibi / float64(l.idle)}, nil
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
