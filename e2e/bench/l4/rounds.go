package main

import (
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/result"
)

// turn is one measurement: a group of metrics of one lane.
type turn struct {
	round int
	group group
	lane  *lane
}

// schedule is the order of a whole run: in each round, for each group, the lanes
// one after the other, another one first each time.
func schedule(s settings, groups []group, lanes []*lane) []turn {
	var turns []turn
	for round := range s.rounds {
		for i, g := range groups {
			if round >= g.rounds(s) {
				continue
			}
			for j := range lanes {
				lane := lanes[(j+round+i)%len(lanes)]
				if lane.variant.SameNode && !g.sameNode || g.proxied && len(lane.proxies()) == 0 {
					continue
				}
				turns = append(turns, turn{round, g, lane})
			}
		}
	}
	return turns
}

// chosenGroups are those that hold any of these metrics, all but
// those on request if none are given.
func chosenGroups(names []string) ([]group, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(slices.Clone(groups), func(g group) bool { return g.onRequest }), nil
	}
	wanted := map[result.Metric]bool{}
	for _, name := range names {
		metric := result.Metric(name)
		if !metric.Known() {
			return nil, fmt.Errorf("no such metric: %q", name)
		}
		wanted[metric] = true
		if metric == result.Scaling { // made of two
			wanted[result.Throughput32], wanted[result.Throughput32OneCPU] = true, true
		}
	}
	return slices.DeleteFunc(slices.Clone(groups), func(g group) bool {
		return !slices.ContainsFunc(g.metrics, func(m result.Metric) bool { return wanted[m] })
	}), nil
}
