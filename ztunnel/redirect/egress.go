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
	if err := c.changeEgress(func(e *bpf.Egress) { e.Denied = denied }); err != nil {
		return fmt.Errorf("guard way out of pod %s: %w", c.pod.UID, err)
	}
	if !denied {
		return nil
	}
	return c.guardNow()
}

// SetTried says whether is counted what would not leave the pod by policies on trial. It holds as SetEgress does.
func (c *Capture) SetTried(tried bool) error {
	if err := c.changeEgress(func(e *bpf.Egress) { e.Tried = tried }); err != nil {
		return fmt.Errorf("try policies on the way out of pod %s: %w", c.pod.UID, err)
	}
	return nil
}

func (c *Capture) changeEgress(change func(*bpf.Egress)) error {
	c.egress.Lock()
	defer c.egress.Unlock()
	e, err := c.redirect.node.Egress(c.pod.NetNS.Cookie())
	if err != nil {
		return err
	}
	change(&e)
	e.DNS = c.turnsDNS()
	return c.redirect.node.SetEgress(c.pod.NetNS.Cookie(), e)
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
	e.DNS = e.DNS && c.pod.DNS
	if err := c.redirect.node.SetEgress(c.pod.NetNS.Cookie(), e); err != nil {
		return fmt.Errorf("set guard on the way out: %w", err)
	}
	return nil
}

// letDNS lets what the pod asks DNS servers come to where it is turned round, now that it is.
func (c *Capture) letDNS() error { return c.changeEgress(func(*bpf.Egress) {}) }

// AllowRanges replaces what some policies allow by addresses, that of an earlier process too. What cannot be told is not allowed, and is
// an error.
func (c *Capture) AllowRanges(by bpf.Table, want map[netip.Prefix]bpf.Allowance) error {
	node, cookie := c.redirect.node, c.pod.NetNS.Cookie()
	before, err := node.Ranges(by, cookie)
	errs := []error{err}
	for _, r := range before {
		if _, ok := want[r]; !ok {
			errs = append(errs, node.ForbidRange(by, cookie, r))
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		if err := node.AllowRange(by, cookie, r, want[r]); err != nil {
			errs = append(errs, fmt.Errorf("allow %s: %w", r, err), node.ForbidRange(by, cookie, r))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guard way out of pod %s: %w", c.pod.UID, err)
	}
	return nil
}

// AllowName allows an address that a name has, for a time, which is put off while it is used.
func (c *Capture) AllowName(by bpf.Table, to netip.Addr, a bpf.Allowance, left time.Duration) error {
	err := c.redirect.node.AllowName(by, c.pod.NetNS.Cookie(), to, a, left)
	if err != nil {
		err = fmt.Errorf("guard way out of pod %s: allow %s: %w", c.pod.UID, to, errors.Join(err, c.ForbidName(by, to)))
	}
	return err
}

// ForbidName ends what AllowName began.
func (c *Capture) ForbidName(by bpf.Table, to netip.Addr) error {
	return c.redirect.node.ForbidName(by, c.pod.NetNS.Cookie(), to)
}

// Names are the addresses that AllowName allowed, of whatever process, and whose time may be over.
func (c *Capture) Names(by bpf.Table) ([]netip.Addr, error) {
	return c.redirect.node.Names(by, c.pod.NetNS.Cookie())
}

// NameLeft is how much longer an address is allowed by AllowName; zero if it is not.
func (c *Capture) NameLeft(by bpf.Table, to netip.Addr) (time.Duration, error) {
	return c.redirect.node.NameLeft(by, c.pod.NetNS.Cookie(), to)
}

// TakeTried returns what policies on trial would have dropped since it was called last, of the captured pods that are wanted, by UID.
func (r *Redirect) TakeTried(wanted func(uid string) bool) (map[string]bpf.AllTried, error) {
	uids := map[uint64]string{}
	for _, c := range r.snapshot() {
		if wanted(c.pod.UID) {
			uids[c.pod.NetNS.Cookie()] = c.pod.UID
		}
	}
	byCookie, err := r.node.TakeTried(func(cookie uint64) bool { return uids[cookie] != "" })
	byUID := make(map[string]bpf.AllTried, len(byCookie))
	for cookie, tried := range byCookie {
		byUID[uids[cookie]] = tried
	}
	if err != nil {
		err = fmt.Errorf("read what policies on trial would drop: %w", err)
	}
	return byUID, err
}
