package main

import (
	"time"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

// triedPause is how often is taken over what the kernel counted that policies on trial would have dropped.
const triedPause = time.Second

// A trying is a pod with policies on trial, and the rules that the kernel goes by.
type trying struct {
	pod   *egress.Pod
	rules egress.Rules
}

// countDue takes over what the kernel counted, when it is time. It returns when the next time is; zero if nothing is on trial.
func (d *dataplane) countDue() (wait time.Duration) {
	all := map[string]trying{}
	for _, c := range d.captured() {
		if rules := c.toldRules(); len(rules.Trial()) > 0 {
			all[c.podUID] = trying{c.egress, rules}
		}
	}
	if len(all) == 0 {
		return 0
	}
	if wait := triedPause - time.Since(d.counted); wait > 0 {
		return wait
	}
	d.counted = time.Now()
	d.count(all)
	return triedPause
}

// count takes over what the kernel counted of some pods, by UID.
func (d *dataplane) count(all map[string]trying) {
	opened, err := d.node.get()
	if err != nil || d.ceded.Load() {
		return // the next process finds it
	}
	taken, err := opened.TakeTried(func(uid string) bool { _, ok := all[uid]; return ok })
	if err != nil {
		d.logger.Warn("what policies on trial would drop is not all counted", "error", err)
	}
	for uid, tried := range taken {
		all[uid].count(tried)
	}
}

func (t trying) count(tried bpf.AllTried) {
	for _, some := range tried.Apart {
		t.pod.Tried(t.rules, egress.Packets{Protocol: some.Protocol, Source: some.Source, Destination: some.Destination, Count: some.Packets})
	}
	if tried.Rest > 0 {
		t.pod.TriedRest(t.rules, tried.Rest)
	}
}

// countTried takes over what the kernel counted of one pod, since it will be gone.
func (c *capture) countTried() {
	c.leaving.mu.Lock()
	defer c.leaving.mu.Unlock()
	c.countTriedLocked()
}

func (c *capture) countTriedLocked() {
	c.dataplane.count(map[string]trying{c.podUID: {c.egress, c.leaving.told}})
}

// toldRules are those that the kernel goes by.
func (c *capture) toldRules() egress.Rules {
	c.leaving.mu.Lock()
	defer c.leaving.mu.Unlock()
	return c.leaving.told
}
