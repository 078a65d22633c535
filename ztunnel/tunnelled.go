package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	// tunnelledPause is between two looks at all that is reached by tunnels alone, which in the largest meshes take milliseconds.
	tunnelledPause = 100 * time.Millisecond
	// tunnelledRetry is how soon the kernel is told again what it did not take, and plaintext looked for that is still carried.
	tunnelledRetry = 500 * time.Millisecond
	// tunnelledEnding is what connections have that are cut, to tell the other end so.
	tunnelledEnding = time.Second
)

// tunnelled is what ztunnel reaches by tunnels alone.
type tunnelled struct {
	most int // ranges that the kernel has room for; fixed

	// Owned by followTunnelled.
	done   bool
	number uint64                   // of the snapshot's that was done
	ranges []netip.Prefix           // of pods, then
	late   map[netip.Addr]time.Time // still carried in plaintext, since

	mu sync.Mutex
	// Guarded by mu.
	problem string
}

// followTunnelled has the kernel drop what this process sends in plaintext to pods that refuse it, until the context ends. What is
// carried when a pod turns strict goes on for the grace of connections that are older than a capture, and is cut then.
func (d *dataplane) followTunnelled(ctx context.Context) error {
	for {
		snapshot := d.store.Snapshot()
		pause, wait := tunnelledPause, (<-chan time.Time)(nil)
		if !d.tunnel(snapshot) {
			wait = time.After(tunnelledRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-snapshot.Changed():
		case <-wait:
			pause = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// tunnel tells the kernel what a snapshot says. It tells whether that is all done.
func (d *dataplane) tunnel(snapshot *workload.Snapshot) (settled bool) {
	t := &d.tunnelled
	opened, err := d.node.get()
	if err != nil {
		return false
	}
	number, all := snapshot.Tunnelled()
	if t.done && number == t.number && slices.Equal(t.ranges, snapshot.PodRanges()) {
		return true
	}
	var addrs []netip.Addr
	for _, w := range all {
		addrs = append(addrs, w.Addresses...)
	}
	addrs, waiting := d.withoutCarried(addrs)
	plan, full := planTunnelled(addrs, snapshot.PodRanges(), t.most)
	if !d.synced() {
		// What an earlier process knew is still so, for all that this one knows.
		before, err := opened.TunnelledOnly()
		if err != nil {
			return t.fail(d, err)
		}
		for to, by := range before {
			if _, ok := plan[to]; !ok && len(plan) < t.most {
				plan[to] = by
			}
		}
	}
	if err := opened.TunnelOnly(plan); err != nil {
		return t.fail(d, err)
	}
	t.number, t.ranges, t.done = number, snapshot.PodRanges(), !waiting && d.synced()
	problem := ""
	if full {
		problem = fmt.Sprintf("TunnelledFull: %d addresses of strict pods are more than the kernel is told (%d): "+
			"strict pods of this node reach nothing in the pod ranges in plaintext. Let fewer workloads be strict, or split the mesh.", len(addrs), t.most)
	}
	t.tell(problem)
	return t.done
}

func (t *tunnelled) fail(d *dataplane, err error) bool {
	t.done = false
	if t.tell("TunnelledUntold: the kernel does not check that ztunnel sends strict pods nothing in plaintext: " + err.Error()) {
		d.logger.Error("kernel not told what is reached by tunnels alone", "error", err)
	}
	return false
}

// tell notes a problem of the node, empty for none, and whether it is another one than before.
func (t *tunnelled) tell(problem string) (other bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	other = t.problem != problem
	t.problem = problem
	return other
}

// withoutCarried leaves out the addresses to which this process still carries connections in plaintext, for their grace, and cuts
// those whose grace is over.
func (d *dataplane) withoutCarried(addrs []netip.Addr) (without []netip.Addr, waiting bool) {
	t, now := &d.tunnelled, time.Now()
	carried := map[netip.Addr][]*conns.Conn{}
	for _, c := range d.conns.Live() {
		if c.Transport != conns.Plaintext {
			continue
		}
		peer := c.Destination.Addr.Addr()
		if c.Direction == conns.Inbound {
			peer = c.Source.Addr.Addr()
		}
		carried[peer] = append(carried[peer], c)
	}
	late := map[netip.Addr]time.Time{}
	for _, addr := range addrs {
		live := carried[addr]
		if len(live) == 0 {
			without = append(without, addr)
			continue
		}
		since, known := t.late[addr]
		if !known {
			since = now
			d.logger.Warn("pod takes nothing in plaintext any more: connections with it go on, and end after the grace",
				"address", addr, "connections", len(live), "grace", d.grace)
		}
		if now.Sub(since) >= d.grace {
			for _, c := range live {
				c.Cut(conns.TunnelRequired, fmt.Errorf("%s takes nothing in plaintext any more: %w", addr, errTurnedStrict))
			}
		}
		if now.Sub(since) >= d.grace+tunnelledEnding {
			without = append(without, addr)
			continue
		}
		late[addr], waiting = since, true
	}
	t.late = late
	return without, waiting
}

var errTurnedStrict = errors.New("it turned strict")

// planTunnelled is what the kernel is told of addresses that are reached by tunnels alone: each for itself as long as there is room
// for most, or else the ranges that all pods are in, for strict pods, and then the others as far as there is room.
func planTunnelled(addrs []netip.Addr, podRanges []netip.Prefix, most int) (plan map[netip.Prefix]bpf.Tunnelled, full bool) {
	plan = make(map[netip.Prefix]bpf.Tunnelled, min(len(addrs), most))
	if full = len(addrs) > most; full {
		wide := podRanges
		if len(wide) > most/2 || slices.ContainsFunc(addrs, outside(podRanges)) {
			wide = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}
		for _, r := range wide {
			plan[r] = bpf.TunnelledByStrict
		}
		addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	}
	for _, addr := range addrs {
		to := netip.PrefixFrom(addr, addr.BitLen())
		if _, known := plan[to]; !known && len(plan) == most {
			break
		}
		plan[to] = bpf.TunnelledByAll
	}
	return plan, full
}

// outside tells whether an address is in none of the ranges, of which there may be thousands.
func outside(ranges []netip.Prefix) func(netip.Addr) bool {
	there, lengths := map[netip.Prefix]bool{}, map[int]bool{}
	for _, r := range ranges {
		there[r.Masked()], lengths[r.Bits()] = true, true
	}
	return func(addr netip.Addr) bool {
		for bits := range lengths {
			if r, err := addr.Prefix(bits); err == nil && there[r] {
				return false
			}
		}
		return true
	}
}

// dumpedTunnelled is what the kernel was told.
type dumpedTunnelled struct {
	To string `json:"to"`
	By string `json:"by"`
}

func (d *dataplane) dumpTunnelled() any {
	all := []dumpedTunnelled{}
	opened, err := d.node.get()
	if err != nil {
		return all
	}
	told, err := opened.TunnelledOnly()
	if err != nil {
		return err.Error()
	}
	for to, by := range told {
		name := "all pods"
		if by == bpf.TunnelledByStrict {
			name = "strict pods"
		}
		all = append(all, dumpedTunnelled{to.String(), name})
	}
	slices.SortFunc(all, func(a, b dumpedTunnelled) int { return strings.Compare(a.To, b.To) })
	return all
}
