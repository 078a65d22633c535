package egress

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// Allowance is what may leave for some addresses, other than by TCP, which ztunnel itself decides about.
type Allowance struct {
	// Every: packets of every protocol; else datagrams of UDP to these ports, sorted and apart from each other.
	Every bool
	UDP   []Ports
	// Ends, if not zero, is when it is over.
	Ends time.Time
}

// Allowances are what may leave by other than TCP, by destination. An address is allowed what the longest prefix says that it is
// in, which includes what the shorter ones say.
type Allowances map[netip.Prefix]Allowance

// everywhere are the destinations of an exception that has none.
var everywhere = [...]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// Static returns what exceptions without names allow.
func (r Rules) Static() Allowances {
	all := Allowances{}
	if len(r.Missing) > 0 {
		return all
	}
	for _, e := range r.exceptions() {
		if e.Name != "" {
			continue
		}
		for _, prefix := range everywhere {
			if e.Prefix.IsValid() {
				prefix = e.Prefix.Masked()
			}
			all.add(prefix, e)
		}
	}
	// From the widest on, so that each has all of what it is in.
	prefixes := slices.SortedFunc(func(yield func(netip.Prefix) bool) {
		for p := range all {
			if !yield(p) {
				return
			}
		}
	}, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for i, narrow := range prefixes {
		for _, wide := range prefixes[:i] {
			if wide.Overlaps(narrow) {
				all[narrow] = merge(all[narrow], all[wide])
			}
		}
	}
	return all
}

// Learnt returns what exceptions allow for one address that a name has.
func (r Rules) Learnt(l Learnt) (Allowance, bool) {
	all := Allowances{}
	prefix := netip.PrefixFrom(l.IP, l.IP.BitLen())
	if len(r.Missing) == 0 {
		for _, e := range r.exceptions() {
			if e.MatchesName(l.Name) && (!e.Prefix.IsValid() || e.Prefix.Contains(l.IP)) {
				all.add(prefix, e)
			}
		}
	}
	a, ok := all[prefix]
	a.Ends = l.Ends
	return a, ok
}

// LearntAll returns what exceptions allow for an address that has several names.
func (r Rules) LearntAll(ip netip.Addr, names []string) (all Allowance, ok bool) {
	for _, name := range names {
		if a, allowed := r.Learnt(Learnt{Name: name, IP: ip}); allowed {
			all, ok = merge(all, a), true
		}
	}
	return all, ok
}

func (r Rules) exceptions() (all []*workload.EgressException) {
	for _, p := range r.denying {
		for i := range p.Exceptions {
			all = append(all, &p.Exceptions[i])
		}
	}
	return all
}

// add allows what an exception lets pass; nothing, if that is TCP.
func (all Allowances) add(prefix netip.Prefix, e *workload.EgressException) {
	a := Allowance{Every: len(e.Ports) == 0}
	if a.Every && !e.Prefix.IsValid() && e.Name == "" {
		return // says nothing
	}
	for _, p := range e.Ports {
		if p.UDP {
			a.UDP = append(a.UDP, Ports{p.First, p.Last})
		}
	}
	if a.Every || len(a.UDP) > 0 {
		all[prefix] = merge(all[prefix], a)
	}
}

// merge allows what either allows.
func merge(a, b Allowance) Allowance {
	if a.Every || b.Every {
		return Allowance{Every: true}
	}
	ports := slices.Concat(a.UDP, b.UDP)
	slices.SortFunc(ports, func(a, b Ports) int { return cmp.Compare(a.First, b.First) })
	var joined []Ports
	for _, p := range ports {
		if last := len(joined) - 1; last >= 0 && int(p.First) <= int(joined[last].Last)+1 {
			joined[last].Last = max(joined[last].Last, p.Last)
		} else {
			joined = append(joined, p)
		}
	}
	return Allowance{UDP: joined}
}
