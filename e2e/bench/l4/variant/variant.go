// Package variant is what can carry the connections between the two pods.
//
//	variant.go  the interface, and what an absent one says
//	pair.go     two processes, A in the client's pod and B in the server's; B is probed
//	plain.go    nothing at all, and two plain proxies
//	captured.go the shipped ztunnel in a simulated mesh
//	bare.go     Ambit's engine on plain listeners
//	peers.go    HAProxy, nginx, Envoy
//	render.go   their configuration
//
// A variant is started between two pods that are its own, and runs until it is
// stopped. It knows nothing of what is measured.
package variant

import (
	"context"
	"net/netip"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// Site is where a variant runs.
type Site struct {
	// Client and Server are two pods, on two nodes or on one. A variant that
	// makes pods itself leaves them alone.
	Client, Server *topology.Pod
	// App is the application's address, in the pod Server.
	App netip.AddrPort
	// Dir is a folder of the variant's own, for configuration and logs.
	Dir string
	// PKI is the folder of the benchmark's certificates (package pki).
	PKI string
	// Connections is how many there will be at once.
	Connections int
}

// Variant can be started at a site, any number of times, one after the other.
type Variant struct {
	Name string
	// SameNode wants both pods on one node. Such a variant is asked for a few
	// metrics alone.
	SameNode bool
	// Files is how many a proxy has open for a connection at most; 0 means two.
	Files int
	// Start returns once the path is there, or nearly: the first connection is
	// tried again for a while. A *[peer.Absent] error says that this machine cannot
	// run the variant.
	Start func(ctx context.Context, site Site) (Path, error)
}

// Path is a variant that runs.
type Path interface {
	// Address is what the client connects to.
	Address() netip.AddrPort
	// Places are where the client and the server are to run.
	Places() (client, server process.Place)
	// Processes are those whose CPU time and memory count, by side; with one
	// process for both sides, both lists name it; none if there are none.
	Processes() (client, server []int)
	// Version of what runs, for the report.
	Version() string
	// Stop ends it, with an error if it had ended before.
	Stop() error
}

// places are the site's own pods.
func (s Site) places() (client, server process.Place) {
	return process.In(s.Client.NetNS), process.In(s.Server.NetNS)
}
