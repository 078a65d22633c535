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
	"github.com/ambit-mesh/ambit/e2e/bench/l4/process"
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
	"github.com/ambit-mesh/ambit/internal/netns"
)

// reachTimeout is how long a variant may take until something comes back.
const reachTimeout = 20 * time.Second

// lane is one variant between its two pods.
type lane struct {
	variant variant.Variant
	site    variant.Site
	app     load.App
	// client makes most loads; beside makes bulk while client pings, so that
	// the two do not share a scheduler.
	client, beside load.Generator

	path variant.Path // nil while it does not run
}

// newLane makes the pods and what runs in them, but for the variant.
func newLane(network *netns.Network, v variant.Variant, dir, pki string, connections int) (_ *lane, err error) {
	l := &lane{variant: v, site: variant.Site{Network: network, Dir: filepath.Join(dir, v.Name), PKI: pki, Connections: connections}}
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
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.app, err = load.StartApp(l.site.Server.NetNS, l.site.Dir, "app"); err != nil {
		return nil, err
	}
	if l.client, err = load.StartGenerator(l.site.Client.NetNS, l.site.Dir, "load"); err != nil {
		return nil, err
	}
	l.beside, err = load.StartGenerator(l.site.Client.NetNS, l.site.Dir, "beside")
	return l, err
}

func addPod(node *netns.Node, name string) (*netns.Pod, error) {
	pod, err := node.AddPod(name)
	if err != nil {
		return nil, err
	}
	if err := setSysctls(pod.NetNS); err != nil {
		return nil, fmt.Errorf("set up pod %s: %w", name, err)
	}
	return pod, nil
}

// start brings the variant up and waits until it carries something.
func (l *lane) start(ctx context.Context) error {
	path, err := l.variant.Start(ctx, l.site)
	if err != nil {
		return fmt.Errorf("start %s: %w", l.variant.Name, err)
	}
	l.path = path
	if err := l.client.Reach(path.Address(), reachTimeout); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", l.variant.Name, err), l.stop())
	}
	return nil
}

// stop ends the variant.
func (l *lane) stop() error {
	if l.path == nil {
		return nil
	}
	path := l.path
	l.path = nil
	if err := path.Stop(); err != nil {
		return fmt.Errorf("stop %s: %w", l.variant.Name, err)
	}
	return nil
}

func (l *lane) close() error {
	err := l.stop()
	for _, p := range []interface{ Stop() error }{l.app, l.client, l.beside} {
		err = errors.Join(err, p.Stop())
	}
	return err
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
