package main

import (
	"context"
	"fmt"
	"strings"
)

func (c *cluster) powerOffCommand(name string) error {
	m, err := findMachine(name)
	if err != nil {
		return err
	}
	p := newProgress(c.out)
	if err := powerOff(c.layout, m); err != nil {
		return err
	}
	p.done(m.name + " is off")
	return nil
}

func (c *cluster) powerOnCommand(ctx context.Context, name string) error {
	m, err := findMachine(name)
	if err != nil {
		return err
	}
	return c.powerOnAndWait(ctx, newProgress(c.out), m)
}

// reboot is a power cut and a start.
func (c *cluster) reboot(ctx context.Context, name string) error {
	m, err := findMachine(name)
	if err != nil {
		return err
	}
	p := newProgress(c.out)
	if err := powerOff(c.layout, m); err != nil {
		return err
	}
	p.done(m.name + " is off")
	return c.powerOnAndWait(ctx, p, m)
}

// powerOnAndWait starts a machine and returns when Kubernetes sees that it
// started: a node that was cut still counts as Ready for a while.
func (c *cluster) powerOnAndWait(ctx context.Context, p *progress, m machine) error {
	server, err := c.openDoor()
	if err != nil {
		return fmt.Errorf("reach API server (is the cluster up?): %w", err)
	}
	oldBootID := ""
	if m.isNode() {
		if _, on := initPID(c.layout, m); !on {
			oldBootID = knownBootID(ctx, server, m)
		}
	}
	if err := powerOn(c.layout, m); err != nil {
		return fmt.Errorf("power on %s: %w", m.name, err)
	}
	if _, on := initPID(c.layout, machines()[0]); !on {
		p.done(m.name + " is on; the control plane is not")
		return nil
	}
	p.done(m.name + " is on")
	p.start("waiting for " + m.name)
	stop := p.watch()
	defer stop()
	if m.isNode() {
		if err := c.waitForNode(ctx, server, m, oldBootID); err != nil {
			return err
		}
	} else if err := waitFor("the API server", apiPatience, func() bool { return ctx.Err() != nil || server.ready() }); err != nil {
		return c.explain(err, m.name)
	}
	p.done(m.name + " is Ready")
	return nil
}

// knownBootID is the last that Kubernetes heard of; empty if nothing.
func knownBootID(ctx context.Context, server *api, m machine) string {
	list, err := server.nodes(ctx)
	if err != nil {
		return ""
	}
	for _, n := range list {
		if n.Metadata.Name == m.name {
			return strings.TrimSpace(n.Status.NodeInfo.BootID)
		}
	}
	return ""
}
