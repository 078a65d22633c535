package route

import (
	"net/netip"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/balance"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// bound is what stands behind a waypoint.
type bound struct {
	workload.Stand
	// what it is, for people.
	what string
	// addressed is the service that the source named, if any.
	addressed *workload.Service
}

func boundService(s *workload.Service) bound {
	return bound{workload.Stand{Gateway: s.Waypoint, Fallback: s.WaypointFallback}, "service " + s.Key, s}
}

func boundWorkload(w *workload.Workload, service *workload.Service) bound {
	return bound{workload.Stand{Gateway: w.Waypoint, Fallback: w.WaypointFallback}, "workload " + w.UID, service}
}

// behind returns what keeps a pod that is addressed itself behind a waypoint: its
// own, or that of a Service which uses the port. Of several it is the first by name,
// for all nodes the same.
func behind(w *workload.Workload, port uint16, snapshot *workload.Snapshot) (bound, bool) {
	stands := snapshot.Stands(w, port)
	if len(stands) == 0 {
		return bound{}, false
	}
	b := bound{stands[0], "workload " + w.UID, nil}
	if s := stands[0].Service; s != nil {
		b.what = "port " + strconv.Itoa(int(port)) + " of " + w.UID + ", through service " + s.Key + ","
	}
	return b, true
}

// toWaypoint opens a tunnel to a pod of the waypoint, which is asked for what the
// source addressed. instead is taken if there is none and that is wanted.
//
// A waypoint takes tunnels, whatever node it is on: it has no other policy than its
// own, and plaintext to it would be without an identity.
func toWaypoint(r Request, b bound, asked netip.AddrPort, snapshot *workload.Snapshot, pick balance.Picker, instead func() (Upstream, error)) (Upstream, error) {
	up, refusal := waypointOf(r, b, asked, snapshot, pick)
	if refusal == nil {
		return up, nil
	}
	if b.Fallback {
		return instead()
	}
	return Upstream{}, refusal
}

func waypointOf(r Request, b bound, asked netip.AddrPort, snapshot *workload.Snapshot, pick balance.Picker) (Upstream, *Refusal) {
	up := Upstream{Kind: Tunnel, Address: asked, Service: b.addressed}
	if b.Gateway.ServiceKey == "" {
		w, ok := snapshot.WorkloadByAddr(b.Gateway.Address)
		if !ok {
			return Upstream{}, refuse(WaypointUnavailable, "%s is behind a waypoint at %s, of which nothing is known", b.what, b.Gateway.Address)
		}
		up.Workload, up.Via = w, netip.AddrPortFrom(b.Gateway.Address, b.Gateway.HBONEPort)
	} else {
		waypoint, ok := snapshot.Service(b.Gateway.ServiceKey)
		if !ok {
			return Upstream{}, refuse(WaypointUnavailable, "%s is behind waypoint %s, which is not there", b.what, b.Gateway.ServiceKey)
		}
		choice, ok := chooseWaypoint(r, waypoint, b.Gateway.HBONEPort, asked, snapshot, pick)
		if !ok {
			return Upstream{}, refuse(WaypointUnavailable, "%s is behind waypoint %s, of which no pod can be used", b.what, waypoint.Key)
		}
		up.Waypoint, up.Workload, up.Via = waypoint, choice.Workload, choice.Target
		up.Nearness, up.Panic = choice.Nearness, choice.Panic
		up.Identities = waypoint.Identities
	}
	if up.Workload.Protocol != workload.HBONE || !up.Workload.NativeTunnel {
		return Upstream{}, refuse(WaypointUnavailable, "%s is behind a waypoint, but %s takes no tunnels of its own", b.what, up.Workload.UID)
	}
	up.Identities = append([]spiffe.ID{up.Workload.Identity}, up.Identities...)
	return up, nil
}

// chooseWaypoint takes a pod of the waypoint: by an address of the family that was
// asked for, or else of the other one.
func chooseWaypoint(r Request, waypoint *workload.Service, port uint16, asked netip.AddrPort, snapshot *workload.Snapshot, pick balance.Picker) (balance.Choice, bool) {
	request := balance.Request{Source: r.Source, Service: waypoint, Avoid: r.Avoid, Endpoints: r.Endpoints}
	families := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	if !asked.Addr().Is4() {
		families[0], families[1] = families[1], families[0]
	}
	for _, family := range families {
		request.Destination = netip.AddrPortFrom(family, port)
		if choice, ok := balance.Choose(request, snapshot, pick); ok {
			return choice, true
		}
	}
	return balance.Choice{}, false
}
