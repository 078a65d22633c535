package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/machine"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// reachTimeout is how long a variant may take until something comes back.
const reachTimeout = 20 * time.Second

// spareConnections are for what is not idle while the idle ones are there.
const spareConnections = 50

// lane is one variant, with a client and a server at its two ends.
type lane struct {
	// Fixed. idle is how many idle connections it gets.
	variant variant.Variant
	site    variant.Site
	idle    int

	// While it runs; path is nil otherwise.
	path variant.Path
	app  load.App
	// client makes most loads; beside makes bulk while client pings, so that
	// the two do not share a scheduler.
	client, beside load.Generator
	// running are the three, to be stopped.
	running []interface{ Stop() error }
}

// newLane makes the pods.
func newLane(network *topology.Network, v variant.Variant, dir, pki string, idle int) (_ *lane, err error) {
	l := &lane{variant: v, idle: idle}
	l.site = variant.Site{Dir: filepath.Join(dir, v.Name), PKI: pki, Connections: max(idle, besideStreams+manyStreams) + spareConnections}
	if err := os.MkdirAll(l.site.Dir, 0o755); err != nil {
		return nil, err
	}
	far := "b"
	if v.SameNode {
		far = "a"
	}
	if l.site.Client, err = addPod(network.Node("a"), v.Name+"-client"); err != nil {
		return nil, err
	}
	if l.site.Server, err = addPod(network.Node(far), v.Name+"-server"); err != nil {
		return nil, err
	}
	l.site.App = netip.AddrPortFrom(l.site.Server.IPv4, load.AppPort)
	return l, nil
}

func addPod(node *topology.Node, name string) (*topology.Pod, error) {
	pod, err := node.AddPod(name)
	if err != nil {
		return nil, err
	}
	if err := machine.Tune(pod.NetNS); err != nil {
		return nil, fmt.Errorf("set up pod %s: %w", name, err)
	}
	return pod, nil
}

// Name is the variant's.
func (l *lane) Name() string { return l.variant.Name }

// Version is that of what runs.
func (l *lane) Version() string { return l.path.Version() }

// Runs tells whether the variant is up.
func (l *lane) Runs() bool { return l.path != nil }

// Start brings the variant up, with client and server, and waits until it
// carries something.
func (l *lane) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start %s: %w", l.variant.Name, errors.Join(err, l.Stop()))
		}
	}()
	if l.path, err = l.variant.Start(ctx, l.site); err != nil {
		return err
	}
	client, server := l.path.Places()
	if l.app, err = load.StartApp(server, l.site.Dir, "app"); err != nil {
		return err
	}
	l.running = append(l.running, l.app)
	if l.client, err = load.StartGenerator(client, l.site.Dir, "load"); err != nil {
		return err
	}
	l.running = append(l.running, l.client)
	if l.beside, err = load.StartGenerator(client, l.site.Dir, "beside"); err != nil {
		return err
	}
	l.running = append(l.running, l.beside)
	return l.client.Reach(l.to(), reachTimeout)
}

// Stop ends the variant, client and server.
func (l *lane) Stop() error {
	var failed []error
	for _, p := range l.running {
		failed = append(failed, p.Stop())
	}
	if l.path != nil {
		failed = append(failed, l.path.Stop())
	}
	l.running, l.path = nil, nil
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("stop %s: %w", l.variant.Name, err)
	}
	return nil
}

// to is what the client connects to.
func (l *lane) to() netip.AddrPort { return l.path.Address() }

// proxies are the processes of both sides, each once.
func (l *lane) proxies() []int {
	client, server := l.path.Processes()
	all := slices.Concat(client, server)
	slices.Sort(all)
	return slices.Compact(all)
}

// all are the proxies, the client and the server.
func (l *lane) all() []int {
	return append(l.proxies(), l.app.Pid(), l.client.Pid(), l.beside.Pid())
}

// counters at one moment.
type counters struct {
	at       time.Time
	received int64
	count    int64
	cpu      time.Duration
}

// read marks the load of a client and reads all counters.
func (l *lane) read(client load.Generator) (c counters, err error) {
	if c.count, err = client.Mark(); err != nil {
		return c, err
	}
	if c.received, err = l.app.Received(); err != nil {
		return c, err
	}
	if c.cpu, err = process.CPU(l.proxies()); err != nil {
		return c, err
	}
	c.at = time.Now()
	return c, nil
}

// spent is the difference of two moments.
type spent struct {
	seconds, bytes, count, cpuSeconds float64
}

func between(a, b counters) spent {
	return spent{
		seconds:    b.at.Sub(a.at).Seconds(),
		bytes:      float64(b.received - a.received),
		count:      float64(b.count - a.count),
		cpuSeconds: (b.cpu - a.cpu).Seconds(),
	}
}
