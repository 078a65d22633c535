// Package balance chooses endpoints of services.
//
//	choose.go    Choose: the nearest that are healthy and not ejected; of two by
//	             chance, by weight, the one with less load
//	locality.go  how near an endpoint is
//	affinity.go  which endpoint is a client's own
//
// Invariants: Choose is pure: the same request, snapshot, load and picks give the
// same answer.
//
// What load and failures are is package endpoints' to know, how an endpoint is
// reached the asker's.
package balance

import (
	"iter"
	"math"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Endpoints is what is known of endpoints besides the snapshot. It may change
// between two questions; an endpoint is a workload and its target.
type Endpoints interface {
	// Load is how much of this node's an endpoint has to carry.
	Load(uid string, target netip.AddrPort) int
	// Ejected tells that an endpoint failed so often that it is left alone.
	Ejected(uid string, target netip.AddrPort) bool
}

// Request is a connection that wants an endpoint of a service.
type Request struct {
	// Source is the workload that connects.
	Source  *workload.Workload
	Service *workload.Service
	// Destination has the service's port, and the family of addresses that is wanted.
	Destination netip.AddrPort
	// Avoid are the UIDs of endpoints that were tried in vain.
	Avoid []string
	// Prefer, if not nil, is chosen if it may be used and is neither avoided nor ejected.
	Prefer *workload.Workload
	// Endpoints, if not nil, tells how they are doing.
	Endpoints Endpoints
}

// Choice is an endpoint that was chosen.
type Choice struct {
	Workload *workload.Workload
	// Target is its address and port.
	Target   netip.AddrPort
	Nearness Nearness
	// Panic: the endpoint is ejected, and so are all others.
	Panic bool
}

// Picker returns a random number in [0, n); n is at least 1. math/rand/v2.Uint64N is one.
type Picker func(n uint64) uint64

// Choose finds an endpoint, if there is one that may be used.
func Choose(r Request, snapshot *workload.Snapshot, pick Picker) (Choice, bool) {
	b := balancing{r, r.Service, r.Destination, snapshot.Endpoints(r.Service.Key), snapshot.HeaviestEndpoint(r.Service.Key), pick}
	c, ok := b.preferred()
	panicked := false
	if !ok {
		c, panicked, ok = b.choose()
	}
	if !ok {
		return Choice{}, false
	}
	return Choice{Workload: c.Workload, Target: c.target, Nearness: NearnessOf(r.Source, c.Workload), Panic: panicked}, true
}

// Awaited finds an endpoint that could be chosen, but that its node has to capture it first.
func Awaited(r Request, snapshot *workload.Snapshot) (*workload.Workload, bool) {
	for _, w := range snapshot.Endpoints(r.Service.Key) {
		if c, ok := suitable(r, r.Service, r.Destination, w); ok && w.Awaited(c.target.Port()) {
			return w, true
		}
	}
	return nil, false
}

// Peers yields the endpoints that r might have got, by uid and target: all that
// may be used, avoided and ejected ones too.
func Peers(r Request, snapshot *workload.Snapshot) iter.Seq2[string, netip.AddrPort] {
	return func(yield func(string, netip.AddrPort) bool) {
		for _, w := range snapshot.Endpoints(r.Service.Key) {
			if c, ok := usable(r, r.Service, r.Destination, w); ok && !yield(c.UID, c.target) {
				return
			}
		}
	}
}

// balancing is one choice among the endpoints of a service.
type balancing struct {
	r         Request
	service   *workload.Service
	dst       netip.AddrPort
	endpoints []*workload.Workload
	// heaviest is the largest weight of endpoints.
	heaviest uint32
	pick     Picker
}

// candidate is an endpoint that may be used.
type candidate struct {
	*workload.Workload
	target netip.AddrPort
	// rank is how many of the scopes that the service prefers it shares with the client.
	rank int
}

// choose takes the nearest endpoints that are not to be avoided and not ejected.
// Of these it takes the client's own one or, of two by chance, the one with less
// load. If all are ejected it takes from them, and says so: they may have been
// ejected wrongly, and a refusal would be certain.
//
// The chance is by weight, and so is the load. At rest the loads are equal, and
// weights decide alone; what lives long is spread by them too.
func (b *balancing) choose() (chosen candidate, panicked, ok bool) {
	if client, sticky := b.sticky(); sticky {
		one, _, panicked := b.scan(func(w *workload.Workload) uint64 { return ^rendezvous(client, w.UID) })
		return one, panicked, one.Workload != nil
	}
	one, two := b.draw()
	if two.Workload == nil {
		one, two, panicked = b.complete(one)
	}
	if two.Workload != nil && b.r.Endpoints != nil {
		a, c := b.r.Endpoints.Load(one.UID, one.target), b.r.Endpoints.Load(two.UID, two.target)
		if uint64(c)*uint64(one.Weight) < uint64(a)*uint64(two.Weight) {
			one = two
		}
	}
	return one, panicked, one.Workload != nil
}

// preferred is the endpoint that the request prefers, if that may be.
func (b *balancing) preferred() (candidate, bool) {
	if b.r.Prefer == nil {
		return candidate{}, false
	}
	c, ok := usable(b.r, b.service, b.dst, b.r.Prefer)
	return c, ok && !b.avoided(c) && !b.ejected(c)
}

// sticky is the client's address, where the service wants it to keep its endpoint.
func (b *balancing) sticky() (netip.Addr, bool) {
	if b.service.Affinity == 0 {
		return netip.Addr{}, false
	}
	return b.r.Source.Address(b.dst.Addr())
}

const (
	// draws are taken before all endpoints are looked at. Where most endpoints
	// can be used three are enough nearly always, and where few can be used these
	// are little beside looking at all.
	draws = 8
	// few endpoints are looked at sooner than two different ones are drawn.
	few = 4
)

// draw takes two different endpoints by chance without looking at the others:
// a service may have thousands. It finds only what can be told to be among the
// best without them, of the highest rank there is and not ejected, and may find
// one or none.
func (b *balancing) draw() (one, two candidate) {
	if len(b.endpoints) <= few {
		return one, two
	}
	for range draws {
		w := b.endpoints[b.pick(uint64(len(b.endpoints)))]
		if w == one.Workload || w.Weight < b.heaviest && b.pick(uint64(b.heaviest)) >= uint64(w.Weight) {
			continue
		}
		c, ok := usable(b.r, b.service, b.dst, w)
		if !ok || c.rank < highest(b.service) || b.avoided(c) || b.ejected(c) {
			continue
		}
		if one.Workload != nil {
			return one, c
		}
		one = c
	}
	return one, two
}

// complete finds what draw did not. One that was drawn stays: to draw anew only
// where two were not found would be to the disadvantage of the heavy, which are
// drawn twice.
func (b *balancing) complete(drawn candidate) (one, two candidate, panicked bool) {
	one, two, panicked = b.scan(func(w *workload.Workload) uint64 { return lot(w.Weight, b.pick) })
	switch {
	case drawn.Workload == nil:
		return one, two, panicked
	case one.Workload == drawn.Workload:
		one = two
	}
	if panicked || one.rank < drawn.rank {
		// What was drawn has been ejected in this moment: these are no match for it.
		one = candidate{}
	}
	return drawn, one, false
}

// scan looks at all endpoints once and returns the two of the nearest that come
// first in order. Either may be missing.
func (b *balancing) scan(order func(*workload.Workload) uint64) (one, two candidate, panicked bool) {
	var good, ejected podium
	for _, w := range b.endpoints {
		if good.one.Workload != nil && rankOf(b.r, b.service, w) < good.one.rank {
			continue // sooner than by what is said of its port, which has to be looked up
		}
		c, ok := usable(b.r, b.service, b.dst, w)
		if !ok || b.avoided(c) {
			continue
		}
		if b.ejected(c) {
			ejected.enter(c, order)
		} else {
			good.enter(c, order)
		}
	}
	if good.one.Workload == nil {
		return ejected.one, ejected.two, ejected.one.Workload != nil
	}
	return good.one, good.two, false
}

func (b *balancing) avoided(c candidate) bool { return slices.Contains(b.r.Avoid, c.UID) }

func (b *balancing) ejected(c candidate) bool {
	return b.r.Endpoints != nil && b.r.Endpoints.Ejected(c.UID, c.target)
}

// podium has the first two of the highest rank seen.
type podium struct {
	one, two           candidate
	oneOrder, twoOrder uint64
}

func (p *podium) enter(c candidate, order func(*workload.Workload) uint64) {
	if p.one.Workload != nil && c.rank < p.one.rank {
		return
	}
	if p.one.Workload != nil && c.rank > p.one.rank {
		*p = podium{}
	}
	switch o := order(c.Workload); {
	case p.one.Workload == nil || o < p.oneOrder:
		p.two, p.twoOrder = p.one, p.oneOrder
		p.one, p.oneOrder = c, o
	case p.two.Workload == nil || o < p.twoOrder:
		p.two, p.twoOrder = c, o
	}
}

// lot is a number by chance; whoever has the lowest is drawn first. With
// exponentially distributed ones everybody is by their weight, the second among
// the rest too (Efraimidis and Spirakis, weighted random sampling, 2006).
func lot(weight uint32, pick Picker) uint64 {
	const steps = 1 << 52 // u is in (0, 1), exactly
	u := (float64(pick(steps)) + 0.5) / steps
	// The bits of floats that are not negative are in the floats' order.
	return math.Float64bits(-math.Log(u) / float64(weight))
}

// usable tells whether w may be used for dst now, where, and how near it is.
func usable(r Request, service *workload.Service, dst netip.AddrPort, w *workload.Workload) (c candidate, ok bool) {
	c, ok = suitable(r, service, dst, w)
	return c, ok && !w.Awaited(c.target.Port())
}

// suitable tells it whether w can be reached yet or not.
func suitable(r Request, service *workload.Service, dst netip.AddrPort, w *workload.Workload) (c candidate, ok bool) {
	if w.Weight == 0 || w.Network != r.Source.Network || !w.Healthy && !service.AllowUnhealthy {
		return candidate{}, false
	}
	port, hasPort := w.Target(service.Key, dst.Port())
	addr, hasAddr := w.Address(dst.Addr())
	if !hasPort || !hasAddr {
		return candidate{}, false
	}
	c = candidate{Workload: w, target: netip.AddrPortFrom(addr, port), rank: rankOf(r, service, w)}
	return c, service.Mode != workload.Strict || c.rank == highest(service)
}

func rankOf(r Request, service *workload.Service, w *workload.Workload) int {
	if service.Mode == workload.AnyLocality {
		return 0
	}
	return shared(r.Source, w, service.Scopes)
}

// highest rank that an endpoint of the service can have.
func highest(service *workload.Service) int {
	if service.Mode == workload.AnyLocality {
		return 0
	}
	return len(service.Scopes)
}
