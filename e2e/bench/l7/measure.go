package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
)

// The loads.
const (
	fewConnections  = 16
	manyConnections = 64
)

// groups are what is measured, with these settings.
func groups(s settings) []rounds.Group[*lane] {
	proxied := func(l *lane) bool { return l.variant.Name != result.None }
	return []rounds.Group[*lane]{
		{Name: "requests, 16 connections", Rounds: s.rounds, Measure: s.requests(fewConnections, result.RPS16, result.CPUPerRequest16),
			Metrics: []result.Metric{result.RPS16, result.CPUPerRequest16}},
		{Name: "requests, 64 connections", Rounds: s.rounds, Measure: s.requests(manyConnections, result.RPS64, result.CPUPerRequest64),
			Metrics: []result.Metric{result.RPS64, result.CPUPerRequest64}},
		{Name: "latency", Rounds: s.rounds, Measure: s.latency,
			Metrics: []result.Metric{result.LatencyP50, result.LatencyP99, result.LatencyP999}},
		{Name: "memory, 20 routes", Rounds: min(s.rounds, s.memoryRounds), Takes: proxied, Measure: s.memory(plan.Routes, result.MemoryIdle),
			Metrics: []result.Metric{result.MemoryIdle}},
		{Name: "memory, 1,000 routes", Rounds: min(s.rounds, s.memoryRounds), Takes: proxied, Measure: s.memory(plan.ManyRoutes, result.MemoryManyRoutes),
			Metrics: []result.Metric{result.MemoryManyRoutes}},
	}
}

// during lets a load, which has begun, run and returns what was spent while it counted.
func (s settings) during(ctx context.Context, l *lane) (begin, end counters, latencies load.Latencies, err error) {
	if err = pause(ctx, s.warm); err == nil {
		begin, err = l.read()
	}
	if err == nil {
		err = pause(ctx, s.window)
	}
	if err == nil {
		end, err = l.read()
	}
	latencies, stopErr := l.client.StopLoad()
	logged, logErr := l.proxy.Trim()
	err = errors.Join(err, stopErr, logErr)
	if n := end.count - begin.count; err == nil && len(l.proxy.Processes()) > 0 && logged < shortestLine*n {
		err = fmt.Errorf("an access log of %d bytes for %d requests", logged, n)
	}
	return begin, end, latencies, err
}

// shortestLine of an access log that is worth the name: who writes none saves more than
// a system call.
const shortestLine = 60

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// requests one after the other on some connections.
func (s settings) requests(connections int, rps, cpu result.Metric) func(context.Context, *lane) (rounds.Values, error) {
	return func(ctx context.Context, l *lane) (rounds.Values, error) {
		if err := l.usual(ctx); err != nil {
			return nil, err
		}
		if err := l.client.Closed(l.proxy.Target(), connections); err != nil {
			return nil, err
		}
		begin, end, _, err := s.during(ctx, l)
		if err != nil {
			return nil, err
		}
		count := float64(end.count - begin.count)
		if count == 0 {
			return nil, errors.New("no request was answered")
		}
		v := rounds.Values{rps: count / end.at.Sub(begin.at).Seconds()}
		if len(l.proxy.Processes()) > 0 {
			v[cpu] = float64((end.cpu - begin.cpu).Nanoseconds()) / 1e3 / count
		}
		return v, nil
	}
}

// fewest latencies of which percentiles are taken.
const fewest = 100

// latency at a fixed rate.
func (s settings) latency(ctx context.Context, l *lane) (rounds.Values, error) {
	if err := l.usual(ctx); err != nil {
		return nil, err
	}
	if err := l.client.Open(l.proxy.Target(), manyConnections, s.rate); err != nil {
		return nil, err
	}
	_, _, latencies, err := s.during(ctx, l)
	if err == nil && latencies.Samples < fewest {
		err = fmt.Errorf("%d requests were answered", latencies.Samples)
	}
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	return rounds.Values{
		result.LatencyP50: micros(latencies.P50), result.LatencyP99: micros(latencies.P99), result.LatencyP999: micros(latencies.P999),
	}, err
}

// memory of a proxy that was started anew: what earlier loads made it hold would hide
// what it needs.
func (s settings) memory(routes int, metric result.Metric) func(context.Context, *lane) (rounds.Values, error) {
	return func(ctx context.Context, l *lane) (rounds.Values, error) {
		if err := l.with(ctx, routes); err != nil {
			return nil, err
		}
		if err := pause(ctx, s.settle); err != nil {
			return nil, err
		}
		bytes, err := process.Memory(l.proxy.Processes())
		return rounds.Values{metric: float64(bytes) / (1 << 20)}, err
	}
}
