package policy

import (
	"maps"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/controller/translate"
)

// grace is how long a node keeps what it had in force without saying so: its
// proxy connects anew now and then, and acknowledges changes of its workloads.
const grace = 10 * time.Second

// captureGrace is what a node gets to capture a pod that runs when it is enrolled. For that long its policies
// are on their way, like those that a node has not acknowledged; a pod that is not captured then may never be.
const captureGrace = 10 * time.Second

// Proxies know what nodes work with.
type Proxies interface {
	// Each visits every connected proxy. Has tells whether the proxy acknowledged
	// a resource as it is published now; if it refused that, in which words.
	Each(visit func(node string, has func(typeURL, name string) (has bool, refusal string)))
	// Waypoint tells whether every connected pod of a waypoint, namespace/name, and
	// at least one, acknowledged a resource as it is published now.
	Waypoint(waypoint, typeURL, name string) bool
	// Trouble is what keeps a pod of a waypoint from carrying out a resource that it
	// acknowledged, in its words; empty if nothing does.
	Trouble(waypoint, typeURL, name string) string
}

// memory is which nodes worked with which versions of policies, and when they
// were last known to.
type memory map[remembered]time.Time

type remembered struct{ key, version, node string }

// measure finds out how far each policy has come.
func (m memory) measure(policies []*translate.Policy, proxies Proxies, now time.Time) map[*translate.Policy]progress {
	type found struct {
		proxies, inForce int
		refusal          string
	}
	byNode := make(map[string][]*translate.Policy)
	for _, p := range policies {
		for node := range p.Nodes {
			byNode[node] = append(byNode[node], p)
		}
	}
	states := make(map[*translate.Policy]map[string]*found, len(policies))
	for _, p := range policies {
		states[p] = make(map[string]*found, len(p.Nodes))
		for node := range p.Nodes {
			states[p][node] = &found{}
		}
	}
	proxies.Each(func(node string, has func(typeURL, name string) (bool, string)) {
		for _, p := range byNode[node] {
			f := states[p][node]
			f.proxies++
			if ok, refusal := holds(p, node, has); ok {
				f.inForce++
			} else if refusal != "" {
				f.refusal = refusal
			}
		}
	})

	result := make(map[*translate.Policy]progress, len(policies))
	known := make(map[remembered]bool)
	for _, p := range policies {
		nodes := enforcing(p)
		on := progress{
			required: len(nodes) + len(p.Waypoints), refusals: make(map[string]string), troubles: make(map[string]string),
			capturing: make(map[string]int), late: make(map[string]int),
		}
		on.await(p.Uncaptured, now)
		for _, waypoint := range p.Waypoints {
			key := keyOn(p, "waypoint "+waypoint)
			known[key] = true
			if heldBy(p, waypoint, proxies) {
				m[key] = now
			}
			last, remembers := m[key]
			switch words := troubleOf(p, waypoint, proxies); {
			case words != "":
				on.troubles[waypoint] = words
				on.waiting = append(on.waiting, "waypoint "+waypoint)
			case remembers && now.Sub(last) < grace:
				on.inForce++
			default:
				on.waiting = append(on.waiting, "waypoint "+waypoint)
			}
		}
		for _, node := range nodes {
			key := keyOn(p, node)
			f, captures := states[p][node]
			if !captures {
				on.waiting = append(on.waiting, node)
				continue
			}
			if f.proxies > 0 && f.inForce == f.proxies {
				m[key] = now
			}
			last, remembers := m[key]
			switch known[key] = true; {
			case f.refusal != "":
				on.refusals[node] = f.refusal
				on.waiting = append(on.waiting, node)
			case len(p.Uncaptured[node]) > 0:
				on.waiting = append(on.waiting, node)
			case remembers && now.Sub(last) < grace:
				on.inForce++
			default:
				on.waiting = append(on.waiting, node)
			}
		}
		result[p] = on
	}
	maps.DeleteFunc(m, func(key remembered, _ time.Time) bool { return !known[key] })
	return result
}

// await counts the pods that are not captured, of which is known since when they are to be.
func (on *progress) await(uncaptured map[string][]time.Time, now time.Time) {
	for node, pods := range uncaptured {
		for _, since := range pods {
			late := since.Add(captureGrace)
			if !now.Before(late) {
				on.late[node]++
				continue
			}
			on.capturing[node]++
			if on.nextLate.IsZero() || late.Before(on.nextLate) {
				on.nextLate = late
			}
		}
	}
}

// enforcing are the nodes where a policy ought to be enforced, sorted: where pods that it applies to are captured, or ought to be.
func enforcing(p *translate.Policy) []string {
	nodes := slices.AppendSeq(slices.Collect(maps.Keys(p.Nodes)), maps.Keys(p.Uncaptured))
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

func keyOn(p *translate.Policy, node string) remembered {
	return remembered{key: p.ID() + " " + string(p.UID), version: p.Version, node: node}
}

// remember that a policy was in force on all of its nodes, unless it is known since.
func (m memory) remember(p *translate.Policy, then time.Time) {
	all := slices.Collect(maps.Keys(p.Nodes))
	for _, waypoint := range p.Waypoints {
		all = append(all, "waypoint "+waypoint)
	}
	for _, node := range all {
		if key := keyOn(p, node); m[key].Before(then) {
			m[key] = then
		}
	}
}

func heldBy(p *translate.Policy, waypoint string, proxies Proxies) bool {
	for _, r := range p.AtWaypoints {
		if !proxies.Waypoint(waypoint, r.Type, r.Name) {
			return false
		}
	}
	return true
}

func troubleOf(p *translate.Policy, waypoint string, proxies Proxies) string {
	for _, r := range p.AtWaypoints {
		if words := proxies.Trouble(waypoint, r.Type, r.Name); words != "" {
			return words
		}
	}
	return ""
}

// holds tells whether a proxy works with a policy, and with what says on its
// node that it applies.
func holds(p *translate.Policy, node string, has func(typeURL, name string) (bool, string)) (bool, string) {
	for _, r := range p.Resources {
		if ok, refusal := has(r.Type, r.Name); !ok {
			return false, refusal
		}
	}
	for _, name := range p.Nodes[node] {
		if ok, refusal := has(resource.Address, name); !ok {
			return false, refusal
		}
	}
	return true, ""
}
