// Package variant is what can stand between the client and the backends.
//
//	variant.go     the interface
//	none.go        nothing at all
//	waypoint.go    the shipped waypoint
//	controller.go  and whom it takes for its controller
//	mesh.go        what that one says: workloads, services, routes, policies
//	bare.go        its engine on plain listeners
//	peers.go       HAProxy, nginx, Envoy, with TLS and without
//	render.go      their configuration
//
// All carry out the routes of package plan, keep an access log and metrics. A variant is
// started in a pod that is its own, and runs until it is stopped. It knows nothing of
// what is measured.
package variant

import (
	"context"
	"net/netip"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// Site is where a variant runs.
type Site struct {
	// Client, Proxy and Backend are three pods, on three nodes.
	Client, Proxy, Backend *topology.Pod
	// Dir is a folder of the variant's own, for configuration and logs.
	Dir string
	// PKI is the folder of the benchmark's certificates (package pki).
	PKI string
	// Routes is how many the proxy gets.
	Routes int
}

// Variant can be started at a site, any number of times, one after the other.
type Variant struct {
	Name string
	// Policy: it refuses what package plan says is forbidden.
	Policy bool
	// Start returns once the proxy is there, or nearly: the first request is tried
	// again for a while. A *[peer.Absent] error says that this machine cannot run it.
	Start func(ctx context.Context, site Site) (Proxy, error)
}

// Proxy is a variant that runs.
type Proxy interface {
	// Target is how clients reach it.
	Target() load.Target
	// Processes are those whose CPU time and memory count; none if there are none.
	Processes() []int
	// Version of what runs, for the report.
	Version() string
	// Trim empties its log, and returns how many bytes there were.
	Trim() (int64, error)
	// Stop ends it, with an error if it had ended before.
	Stop() error
}

// Ports of the proxies, in their pods.
const (
	plainPort  = 8000
	securePort = 8443
	tunnelPort = 15008
	adminPort  = 9000
)

func (s Site) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(s.Proxy.IPv4, port) }
