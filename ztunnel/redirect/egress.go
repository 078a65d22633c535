package redirect

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/bpf"
)

// SetEgress says whether nothing leaves the pod but TCP that ztunnel carries, and what is allowed. It holds, as SetStrict does,
// whatever becomes of the process. Connections from before the capture end, but for the grace of SetStrict.
func (c *Capture) SetEgress(denied bool) error {
	// First: what is attached shall not wait for what cannot be.
	c.egress.Lock()
	err := c.setEgress(denied, c.turnsDNS())
	c.egress.Unlock()
	if err != nil {
		return fmt.Errorf("guard way out of pod %s: %w", c.pod.UID, err)
	}
	if !denied {
		return nil
	}
	return c.guardNow()
}

func (c *Capture) setEgress(denied, dns bool) error {
	return c.redirect.node.SetEgress(c.pod.NetNS.Cookie(), bpf.Egress{Denied: denied, DNS: dns})
}

// EgressDenied tells what SetEgress said last, of whatever process.
func (c *Capture) EgressDenied() (bool, error) {
	e, err := c.redirect.node.Egress(c.pod.NetNS.Cookie())
	if err != nil {
		return false, fmt.Errorf("read guard on the way out of pod %s: %w", c.pod.UID, err)
	}
	return e.Denied, nil
}

// raiseEgress is raiseGuard's part: of a pod that an earlier process guarded it is as it was.
func (c *Capture) raiseEgress(known bool) error {
	e := bpf.Egress{Denied: c.pod.EgressDenied}
	if known {
		var err error
		if e, err = c.redirect.node.Egress(c.pod.NetNS.Cookie()); err != nil {
			return fmt.Errorf("read guard on the way out: %w", err)
		}
	}
	// What is not turned round yet does not leave either.
	if err := c.setEgress(e.Denied, e.DNS && c.pod.DNS); err != nil {
		return fmt.Errorf("set guard on the way out: %w", err)
	}
	return nil
}

// letDNS lets what the pod asks DNS servers come to where it is turned round, now that it is.
func (c *Capture) letDNS() error {
	c.egress.Lock()
	defer c.egress.Unlock()
	denied, err := c.EgressDenied()
	if err == nil {
		err = c.setEgress(denied, c.turnsDNS())
	}
	return err
}

// AllowRanges replaces what is allowed by addresses, that of an earlier process too. What cannot be told is not allowed, and is
// an error.
func (c *Capture) AllowRanges(want map[netip.Prefix]bpf.Allowance) error {
	node, cookie := c.redirect.node, c.pod.NetNS.Cookie()
	before, err := node.Ranges(cookie)
	errs := []error{err}
	for _, r := range before {
		if _, ok := want[r]; !ok {
			errs = append(errs, node.ForbidRange(cookie, r))
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		if err := node.AllowRange(cookie, r, want[r]); err != nil {
			errs = append(errs, fmt.Errorf("allow %s: %w", r, err), node.ForbidRange(cookie, r))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guard way out of pod %s: %w", c.pod.UID, err)
	}
	return nil
}

// AllowName allows an address that a name has, for a time, which is put off while it is used.
func (c *Capture) AllowName(to netip.Addr, a bpf.Allowance, left time.Duration) error {
	err := c.redirect.node.AllowName(c.pod.NetNS.Cookie(), to, a, left)
	if err != nil {
		err = fmt.Errorf("guard way out of pod %s: allow %s: %w", c.pod.UID, to, errors.Join(err, c.ForbidName(to)))
	}
	return err
}

// ForbidName ends what AllowName began.
func (c *Capture) ForbidName(to netip.Addr) error {
	return c.redirect.node.ForbidName(c.pod.NetNS.Cookie(), to)
}

// Names are the addresses that AllowName allowed, of whatever process, and whose time may be over.
func (c *Capture) Names() ([]netip.Addr, error) { return c.redirect.node.Names(c.pod.NetNS.Cookie()) }

// NameLeft is how much longer an address is allowed by AllowName; zero if it is not.
func (c *Capture) NameLeft(to netip.Addr) (time.Duration, error) {
	return c.redirect.node.NameLeft(c.pod.NetNS.Cookie(), to)
}
