package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/inbound"
	"github.com/ambit-mesh/ambit/ztunnel/outbound"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// capture is one pod, captured and served. The pod's worker calls Release,
// Drain and Close, one after the other.
type capture struct {
	// Fixed after dataplane.serve.
	dataplane *dataplane
	uid       string // the workload's
	podUID    string
	ips       []netip.Addr
	id        spiffe.ID
	netns     *podns.NetNS
	redirect  *redirect.Capture
	share     *quota.Share
	outbound  *outbound.Listener
	inbound   *inbound.Listener
	egress    *egress.Pod
	dns       *dns.Proxy         // nil: what the pod asks DNS servers is not captured
	stop      context.CancelFunc // accept no more, drain
	ended     chan struct{}      // closed when the last connection is over
	logger    *slog.Logger

	// Owned by the pod's worker.
	released bool

	// Owned by dataplane.followStrictness: what was last said; nil for nothing.
	strict *bool
	// Owned by dataplane.followEgress.
	leaving leaving
}

// run serves until the capture is stopped and its last connection over.
func (c *capture) run(ctx context.Context) {
	defer close(c.ended)
	var group sync.WaitGroup
	sides := map[string]func(context.Context) error{"outbound": c.outbound.Run, "inbound": c.inbound.Run}
	if c.dns != nil {
		sides["dns"] = c.dns.Run
	}
	for name, side := range sides {
		group.Go(func() {
			if err := side(ctx); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
				c.logger.Error("pod is served no more", "side", name, "error", err)
			}
		})
	}
	group.Wait()
	c.forget()
	c.share.Leave()
	c.dataplane.certs.Forget(c.id)
	if err := c.netns.Close(); err != nil {
		c.logger.Warn("network namespace not closed", "error", err)
	}
}

// forget takes the pod off the short way within the node.
func (c *capture) forget() {
	d := c.dataplane
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.captures[c.uid] == c {
		delete(d.captures, c.uid)
	}
}

// Release lets go of a pod that lives on. Its connections end in their own time.
func (c *capture) Release(ctx context.Context) error {
	// First: at no moment is it unknown.
	if err := c.redirect.Leave(); err != nil {
		return withCode(err, "ReleaseFailed")
	}
	c.countTried()
	if err := c.redirect.Release(ctx); err != nil {
		return withCode(err, "ReleaseFailed")
	}
	c.released = true
	c.forget()
	c.stop()
	return nil
}

// queueGrace is how long the listeners' queues are still served once accepting
// stops: a bit more than package listen takes for it.
const queueGrace = 75 * time.Millisecond

// Drain takes no more connections, lets the open ones end until the context
// does, and cuts those that have not. Redirection stays, without listeners:
// until the next process takes over, what connects to the pod is reset, and what
// the pod connects to is reset or waits; nothing goes around.
func (c *capture) Drain(ctx context.Context) {
	c.outbound.StopAccepting()
	c.inbound.StopAccepting()
	listeners := []*net.TCPListener{c.redirect.Outbound, c.redirect.Plaintext, c.redirect.HBONE}
	if c.dns != nil {
		c.dns.StopAccepting()
		listeners = append(listeners, c.redirect.DNSStream)
	}
	select {
	case <-time.After(queueGrace): // who is in a queue is connected, as far as he knows
	case <-ctx.Done():
	}
	for _, listener := range listeners {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			c.logger.Warn("listener not closed", "error", err)
		}
	}
	c.stop()
	select {
	case <-c.ended:
	case <-ctx.Done():
		c.cut()
	}
}

// Close ends what is left of a pod whose sandbox is gone.
func (c *capture) Close() error {
	var err error
	if !c.released {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		c.countTried()
		err = c.redirect.Release(ctx)
	}
	c.forget()
	c.stop()
	c.cut()
	return err
}

// cut ends all connections and waits for that.
func (c *capture) cut() {
	c.outbound.Cut()
	c.inbound.Cut()
	if c.dns != nil {
		c.dns.Cut()
	}
	<-c.ended
}
