package main

import (
	"cmp"
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
	number uint64                        // of the snapshot's that was done
	ranges []netip.Prefix                // of pods, then
	late   map[bpf.TunnelledTo]time.Time // still carried in plaintext, since

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
	var shut []bpf.TunnelledTo
	for _, w := range all {
		shut = append(shut, shutOf(w)...)
	}
	shut, waiting := d.withoutCarried(shut)
	plan, full := planTunnelled(shut, snapshot.PodRanges(), t.most)
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
		problem = fmt.Sprintf("TunnelledFull: %d addresses and ports of strict pods are more than the kernel is told (%d): "+
			"strict pods of this node reach nothing in the pod ranges in plaintext. Let fewer workloads be strict, or split the mesh.", len(shut), t.most)
	}
	t.tell(problem)
	return t.done
}

// shutOf lists what of a workload is reached by tunnels alone: its addresses, or single ports of each.
func shutOf(w *workload.Workload) (shut []bpf.TunnelledTo) {
	all, ports := w.TunnelsOnly()
	for _, addr := range w.Addresses {
		if all {
			shut = append(shut, bpf.TunnelledAddr(addr, 0))
			continue
		}
		for _, port := range ports {
			shut = append(shut, bpf.TunnelledAddr(addr, port))
		}
	}
	return shut
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

// withoutCarried leaves out that to which this process still carries connections in plaintext, for their grace, and cuts those
// whose grace is over.
func (d *dataplane) withoutCarried(shut []bpf.TunnelledTo) (without []bpf.TunnelledTo, waiting bool) {
	t, now, carried := &d.tunnelled, time.Now(), d.carriedInPlaintext()
	late := map[bpf.TunnelledTo]time.Time{}
	for _, to := range shut {
		live := carried[to]
		if len(live) == 0 {
			without = append(without, to)
			continue
		}
		since, known := t.late[to]
		if !known {
			since = now
			d.logger.Warn("pod takes nothing in plaintext any more: connections with it go on, and end after the grace",
				"to", to.String(), "connections", len(live), "grace", d.grace)
		}
		if now.Sub(since) >= d.grace {
			for _, c := range live {
				c.Cut(conns.TunnelRequired, fmt.Errorf("%s takes nothing in plaintext any more: %w", to, errTurnedStrict))
			}
		}
		if now.Sub(since) >= d.grace+tunnelledEnding {
			without = append(without, to)
			continue
		}
		late[to], waiting = since, true
	}
	t.late = late
	return without, waiting
}

// carriedInPlaintext are the live connections by the address that this process sends to, and by its port.
func (d *dataplane) carriedInPlaintext() map[bpf.TunnelledTo][]*conns.Conn {
	carried := map[bpf.TunnelledTo][]*conns.Conn{}
	for _, c := range d.conns.Live() {
		if c.Transport != conns.Plaintext {
			continue
		}
		peer := c.Destination.Addr
		if c.Direction == conns.Inbound {
			peer = c.Source.Addr
		}
		for _, port := range []uint16{0, peer.Port()} {
			to := bpf.TunnelledAddr(peer.Addr(), port)
			carried[to] = append(carried[to], c)
		}
	}
	return carried
}

var errTurnedStrict = errors.New("it turned strict")

// planTunnelled is what the kernel is told of that which is reached by tunnels alone: each for itself as long as there is room for
// most, or else the ranges that all pods are in, for strict pods, and then the others as far as there is room, whole addresses first.
func planTunnelled(shut []bpf.TunnelledTo, podRanges []netip.Prefix, most int) (plan map[bpf.TunnelledTo]bpf.Tunnelled, full bool) {
	plan = make(map[bpf.TunnelledTo]bpf.Tunnelled, min(len(shut), most))
	if full = len(shut) > most; full {
		wide := podRanges
		if len(wide) > most/2 || slices.ContainsFunc(shut, outside(podRanges)) {
			wide = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}
		for _, r := range wide {
			plan[bpf.TunnelledTo{Range: r}] = bpf.TunnelledByStrict
		}
		shut = slices.SortedFunc(slices.Values(shut), func(a, b bpf.TunnelledTo) int {
			return cmp.Or(cmp.Compare(min(a.Port, 1), min(b.Port, 1)), a.Range.Addr().Compare(b.Range.Addr()), cmp.Compare(a.Port, b.Port))
		})
	}
	for _, to := range shut {
		if _, known := plan[to]; !known && len(plan) == most {
			break
		}
		plan[to] = bpf.TunnelledByAll
	}
	return plan, full
}

// outside tells whether something is in none of the ranges, of which there may be thousands.
func outside(ranges []netip.Prefix) func(bpf.TunnelledTo) bool {
	there, lengths := map[netip.Prefix]bool{}, map[int]bool{}
	for _, r := range ranges {
		there[r.Masked()], lengths[r.Bits()] = true, true
	}
	return func(to bpf.TunnelledTo) bool {
		for bits := range lengths {
			if r, err := to.Range.Addr().Prefix(bits); err == nil && there[r] {
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
