package main

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

// sweepNames is how often addresses are looked for whose time is over.
const sweepNames = time.Minute

// allowed is what the kernel lets leave by some policies.
type allowed struct {
	rules egress.Rules // of these policies
	// names of the addresses that it allows for their names.
	names map[netip.Addr][]string
}

func ranges(all egress.Allowances) map[netip.Prefix]bpf.Allowance {
	told := make(map[netip.Prefix]bpf.Allowance, len(all))
	for prefix, a := range all {
		told[prefix] = allowance(a)
	}
	return told
}

func allowance(a egress.Allowance) bpf.Allowance {
	told := bpf.Allowance{Every: a.Every}
	for _, p := range a.UDP {
		told.UDP = append(told.UDP, bpf.PortRange(p))
	}
	return told
}

// learn takes over an answer of the node's resolvers, before the pod gets it.
func (c *capture) learn(answer dns.Answer) {
	addresses := make([]egress.Address, len(answer.Addresses))
	for i, a := range answer.Addresses {
		addresses[i] = egress.Address(a)
	}
	c.egress.Names.Learn(answer.Name, addresses)
	c.leaving.mu.Lock()
	defer c.leaving.mu.Unlock()
	for by := range c.leaving.allowed {
		if !c.leaving.allowed[by].rules.Restrict() {
			continue
		}
		for _, a := range answer.Addresses {
			if err := c.allowNameLocked(bpf.Table(by), a.IP); err != nil {
				c.logger.Warn("address of a name not allowed but by TCP", "name", answer.Name, "address", a.IP, "error", err)
			}
		}
	}
}

// allowNameLocked has the kernel allow what rules say of an address for its names, and for those that it was allowed for, as long
// as it still is: what goes there may live on.
func (c *capture) allowNameLocked(by bpf.Table, ip netip.Addr) error {
	l := &c.leaving.allowed[by]
	left, err := c.redirect.NameLeft(by, ip)
	if err != nil {
		return err
	}
	var names []string
	if left > 0 {
		names = l.names[ip]
	}
	ends := time.Now().Add(left)
	for _, learnt := range c.egress.Names.At(ip) {
		if _, ok := l.rules.Learnt(learnt); !ok {
			continue
		}
		names = append(slices.Clone(names), learnt.Name)
		if learnt.Ends.After(ends) {
			ends = learnt.Ends
		}
	}
	slices.Sort(names)
	merged, ok := l.rules.LearntAll(ip, slices.Compact(names))
	if !ok {
		delete(l.names, ip)
		return c.redirect.ForbidName(by, ip)
	}
	if l.names == nil {
		l.names = map[netip.Addr][]string{}
	}
	l.names[ip] = slices.Compact(names)
	return c.redirect.AllowName(by, ip, allowance(merged), time.Until(ends))
}

// allowNamesLocked has the kernel go by the rules for all names that are known, and for those that it was told of.
func (c *capture) allowNamesLocked(by bpf.Table) error {
	told, err := c.redirect.Names(by)
	errs := []error{err}
	for _, learnt := range c.egress.Names.All() {
		told = append(told, learnt.IP)
	}
	slices.SortFunc(told, netip.Addr.Compare)
	for _, ip := range slices.Compact(told) {
		errs = append(errs, c.allowNameLocked(by, ip))
	}
	return errors.Join(errs...)
}

// sweepLocked takes out of the kernel, from time to time, what it does not allow any more. It returns when the next time is; zero
// if there is nothing to take out.
func (c *capture) sweepLocked() (wait time.Duration) {
	l := &c.leaving
	if len(l.allowed[bpf.InForce].names)+len(l.allowed[bpf.OnTrial].names) == 0 {
		return 0
	}
	if wait := sweepNames - time.Since(l.swept); wait > 0 {
		return wait
	}
	l.swept = time.Now()
	for by := range l.allowed {
		c.sweepTableLocked(bpf.Table(by))
	}
	return sweepNames
}

func (c *capture) sweepTableLocked(by bpf.Table) {
	names := c.leaving.allowed[by].names
	for ip := range names {
		if left, err := c.redirect.NameLeft(by, ip); err == nil && left == 0 {
			delete(names, ip)
			if err := c.redirect.ForbidName(by, ip); err != nil {
				c.logger.Warn("address of a name not taken out of the kernel", "address", ip, "error", err)
			}
		}
	}
}
