package egress

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// minTTL is what a client may take from the answer to its connection, however short the answer's own time is.
	minTTL = 30 * time.Second
	// maxTTL bounds what a mistaken zone can do.
	maxTTL = 24 * time.Hour
	// maxLearnt pairs of name and address of one pod: that of a crawler that asks for ever new ones loses those that are the
	// soonest to end.
	maxLearnt = 8192
)

// Address is one that a name has, and until when that may be relied on.
type Address struct {
	IP  netip.Addr
	TTL time.Duration
}

type pair struct {
	name string
	ip   netip.Addr
}

// Names are the names that the addresses have which one pod asked for: all of them, since a policy that mentions one may come
// later. What is in it came from the node's resolvers. Its methods may be called concurrently.
type Names struct {
	mu sync.Mutex
	// Guarded by mu.
	ends  map[pair]time.Time
	byIP  map[netip.Addr][]string
	limit int
	// changes is how often something was learnt that was not known.
	changes uint64
}

// NewNames makes an empty Names.
func NewNames() *Names {
	return &Names{ends: map[pair]time.Time{}, byIP: map[netip.Addr][]string{}, limit: maxLearnt}
}

// Learn takes over what a name stands for. What it stood for before goes on for its own time.
func (n *Names) Learn(name string, addresses []Address) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addresses {
		n.learnLocked(now, pair{name, a.IP}, now.Add(min(max(a.TTL, minTTL), maxTTL)))
	}
}

// Restore takes over what an earlier process learnt, as far as it is not over.
func (n *Names) Restore(all []Learnt) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range all {
		if latest := now.Add(maxTTL); l.Ends.After(latest) { // by a clock that was set
			l.Ends = latest
		}
		if l.Ends.After(now) && l.Name != "" && l.IP.IsValid() {
			n.learnLocked(now, pair{l.Name, l.IP}, l.Ends)
		}
	}
}

// Changes is another number whenever something was learnt.
func (n *Names) Changes() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changes
}

func (n *Names) learnLocked(now time.Time, p pair, end time.Time) {
	before, known := n.ends[p]
	if !known {
		n.makeRoomLocked(now)
		n.byIP[p.ip] = append(n.byIP[p.ip], p.name)
	}
	if end.After(before) {
		n.ends[p] = end
		n.changes++
	}
}

// makeRoomLocked forgets what is over, and if nothing is, what will be next.
func (n *Names) makeRoomLocked(now time.Time) {
	if len(n.ends) < n.limit {
		return
	}
	var next pair
	var soonest time.Time
	for p, end := range n.ends {
		if !end.After(now) {
			n.forgetLocked(p)
		} else if soonest.IsZero() || end.Before(soonest) {
			next, soonest = p, end
		}
	}
	if len(n.ends) >= n.limit {
		n.forgetLocked(next)
	}
}

func (n *Names) forgetLocked(p pair) {
	delete(n.ends, p)
	left := slices.DeleteFunc(n.byIP[p.ip], func(name string) bool { return name == p.name })
	if len(left) == 0 {
		delete(n.byIP, p.ip)
	} else {
		n.byIP[p.ip] = left
	}
}

// Of returns the names that an address has now.
func (n *Names) Of(ip netip.Addr) []string {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for _, name := range slices.Clone(n.byIP[ip]) {
		if p := (pair{name, ip}); n.ends[p].After(now) {
			names = append(names, name)
		} else {
			n.forgetLocked(p)
		}
	}
	slices.Sort(names)
	return names
}

// A Learnt is a name with one of its addresses.
type Learnt struct {
	Name string
	IP   netip.Addr
	Ends time.Time
}

// At returns what is known of an address now.
func (n *Names) At(ip netip.Addr) (all []Learnt) {
	names := n.Of(ip)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		if end, ok := n.ends[pair{name, ip}]; ok {
			all = append(all, Learnt{name, ip, end})
		}
	}
	return all
}

// All returns what is known now.
func (n *Names) All() []Learnt {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Learnt, 0, len(n.ends))
	for p, end := range n.ends {
		if end.After(now) {
			all = append(all, Learnt{p.name, p.ip, end})
		}
	}
	return all
}
