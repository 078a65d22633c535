package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/machine"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// reachTimeout is how long a variant may take until something comes back.
const reachTimeout = 20 * time.Second

// lane is one variant, between a client and backends of its own.
type lane struct {
	// Fixed.
	variant variant.Variant
	site    variant.Site

	// While it runs; proxy is nil otherwise. routes is how many the proxy has.
	proxy    variant.Proxy
	routes   int
	backends load.Backends
	client   load.Generator
	// running are the latter two, to be stopped.
	running []interface{ Stop() error }
}

// newLane makes the pods.
func newLane(network *topology.Network, v variant.Variant, dir, pki string) (*lane, error) {
	l := &lane{variant: v, site: variant.Site{Dir: filepath.Join(dir, v.Name), PKI: pki}}
	if err := os.MkdirAll(l.site.Dir, 0o755); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		pod  **topology.Pod
		node string
	}{{&l.site.Client, nodes[0]}, {&l.site.Proxy, nodes[1]}, {&l.site.Backend, nodes[2]}} {
		pod, err := network.Node(p.node).AddPod(v.Name)
		if err != nil {
			return nil, err
		}
		if err := machine.Tune(pod.NetNS); err != nil {
			return nil, fmt.Errorf("set up pod %s of %s: %w", v.Name, p.node, err)
		}
		*p.pod = pod
	}
	return l, nil
}

// Name is the variant's.
func (l *lane) Name() string { return l.variant.Name }

// Version is that of what runs.
func (l *lane) Version() string { return l.proxy.Version() }

// Runs tells whether the variant is up.
func (l *lane) Runs() bool { return l.proxy != nil }

// Start brings the variant up, with client and backends, and waits until every request
// is answered, or refused where it has to be.
func (l *lane) Start(ctx context.Context) error { return l.startWith(ctx, plan.Routes) }

func (l *lane) startWith(ctx context.Context, routes int) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start %s: %w", l.variant.Name, errors.Join(err, l.Stop()))
		}
	}()
	if l.backends, err = load.StartBackends(process.In(l.site.Backend.NetNS), l.site.Dir, l.site.PKI); err != nil {
		return err
	}
	l.running = append(l.running, l.backends)
	if l.client, err = load.StartGenerator(process.In(l.site.Client.NetNS), l.site.Dir); err != nil {
		return err
	}
	l.running = append(l.running, l.client)
	site := l.site
	site.Routes, l.routes = routes, routes
	if l.proxy, err = l.variant.Start(ctx, site); err != nil {
		l.proxy = nil
		return err
	}
	if err := l.client.Reach(l.proxy.Target(), reachTimeout); err != nil || !l.variant.Policy {
		return err
	}
	status, err := l.client.Forbidden(l.proxy.Target())
	if err == nil && status != http.StatusForbidden {
		err = fmt.Errorf("a request that policy refuses is answered with %d", status)
	}
	return err
}

// with has the variant run anew, with so many routes.
func (l *lane) with(ctx context.Context, routes int) error {
	return errors.Join(l.Stop(), l.startWith(ctx, routes))
}

// usual has the variant run with the usual routes.
func (l *lane) usual(ctx context.Context) error {
	if l.routes == plan.Routes {
		return nil
	}
	return l.with(ctx, plan.Routes)
}

// Stop ends the variant, client and backends.
func (l *lane) Stop() error {
	var failed []error
	for _, p := range l.running {
		failed = append(failed, p.Stop())
	}
	if l.proxy != nil {
		failed = append(failed, l.proxy.Stop())
	}
	l.running, l.proxy, l.routes = nil, nil, 0
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("stop %s: %w", l.variant.Name, err)
	}
	return nil
}

// counters at one moment.
type counters struct {
	at    time.Time
	count int64
	cpu   time.Duration
}

// read marks the load and reads all counters.
func (l *lane) read() (c counters, err error) {
	if c.count, err = l.client.Mark(); err != nil {
		return c, err
	}
	if c.cpu, err = process.CPU(l.proxy.Processes()); err != nil {
		return c, err
	}
	c.at = time.Now()
	return c, nil
}
