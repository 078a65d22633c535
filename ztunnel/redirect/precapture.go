package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/sockdiag"
)

// A Flow is a connection of a pod as the pod sees it.
type Flow struct {
	Local, Remote netip.AddrPort
}

// precapture are the connections that a pod had when it was captured. They go on around ztunnel, in plaintext, until they end or
// the pod turns strict and the grace is over: then they are ended. The kernel has their sockets' cookies (mesh_precapture), and
// when the grace is over (mesh_guards): it goes by these whether this process lives or not.
type precapture struct {
	mu sync.Mutex
	// Guarded by mu.
	sockets  map[uint64]sockdiag.Socket // by cookie
	deadline time.Time                  // zero: the pod is not strict
}

// endingTime is how much longer than the grace the kernel lets them pass: so that the peers are told of their end.
const endingTime = time.Second

// listPrecapture notes what the pod is connected to besides what has come by capture since: those bear the mark, or are ztunnel's
// own. Of a pod that an earlier process captured it is known, and looked up.
func (c *Capture) listPrecapture() error {
	node, cookie := c.redirect.node, c.pod.NetNS.Cookie()
	noted, err := node.Precapture(cookie)
	if err != nil {
		return fmt.Errorf("list connections older than the capture: %w", err)
	}
	if !c.guard.fresh && len(noted) == 0 {
		return nil
	}
	var sockets []sockdiag.Socket
	err = c.pod.NetNS.Do(func() (err error) {
		sockets, err = sockdiag.ListTagged(node.TagsFD(), sockdiag.Connected...)
		return err
	})
	if err != nil {
		return fmt.Errorf("list connections older than the capture: %w", err)
	}
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	for _, s := range sockets {
		known := slices.Contains(noted, s.Cookie)
		if !known && (!c.guard.fresh || !c.isOlder(s)) {
			continue
		}
		if !known {
			if err := node.AddPrecapture(s.Cookie, cookie); err != nil {
				return fmt.Errorf("note connection %s -> %s: %w", s.Local, s.Remote, err)
			}
		}
		c.older.sockets[s.Cookie] = s
	}
	for _, gone := range noted {
		if _, lives := c.older.sockets[gone]; !lives {
			if err := node.RemovePrecapture(gone); err != nil {
				return fmt.Errorf("forget connection: %w", err)
			}
		}
	}
	return nil
}

// isOlder tells of a socket that is there just after the capture whether it was before, and leaves the pod.
func (c *Capture) isOlder(s sockdiag.Socket) bool {
	remote := s.Remote.Addr()
	return s.Mark != uint32(bpf.Mark) && s.Tag == nil && remote.IsValid() && !remote.IsUnspecified() && !remote.IsLoopback() &&
		remote != c.ip4 && remote != c.ip6
}

// Precapture returns the connections that the pod has from before its capture.
func (c *Capture) Precapture() []Flow {
	c.prune()
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	flows := make([]Flow, 0, len(c.older.sockets))
	for _, s := range c.older.sockets {
		flows = append(flows, Flow{s.Local, s.Remote})
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		if order := a.Remote.Compare(b.Remote); order != 0 {
			return order
		}
		return a.Local.Compare(b.Local)
	})
	return flows
}

// prune forgets those that have ended.
func (c *Capture) prune() {
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	if len(c.older.sockets) == 0 {
		return
	}
	err := c.pod.NetNS.Do(func() error {
		for cookie, s := range c.older.sockets {
			lives, err := s.Lives()
			if err == nil && !lives {
				err = c.forgetOlderLocked(cookie)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		c.redirect.logger.Warn("connections older than the capture not looked up", "pod_uid", c.pod.UID, "error", err)
	}
}

func (c *Capture) forgetOlderLocked(cookie uint64) error {
	delete(c.older.sockets, cookie)
	return c.redirect.node.RemovePrecapture(cookie)
}

// endOlder ends them once the grace is over.
func (c *Capture) endOlder() {
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	if c.older.deadline.IsZero() || time.Now().Before(c.older.deadline) || len(c.older.sockets) == 0 {
		return
	}
	ended := len(c.older.sockets)
	err := c.pod.NetNS.Do(func() error {
		var errs []error
		for cookie, s := range c.older.sockets {
			// Where the kernel cannot end it, nothing passes any more, and both ends find out in their own time.
			errs = append(errs, s.Destroy(), c.forgetOlderLocked(cookie))
		}
		return errors.Join(errs...)
	})
	c.redirect.logger.Info("connections older than the capture ended: the pod is strict", "pod_uid", c.pod.UID, "connections", ended)
	if err != nil {
		c.redirect.logger.Warn("not all of them were ended: what they send is dropped", "pod_uid", c.pod.UID, "error", err)
	}
}

// forgetOlder is for a pod that is let go: they go on.
func (c *Capture) forgetOlder() error {
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	var errs []error
	for cookie := range c.older.sockets {
		errs = append(errs, c.forgetOlderLocked(cookie))
	}
	return errors.Join(errs...)
}
