package variant

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

const (
	// outboundPort is proxy A's, on the loopback of the client's pod.
	outboundPort = 15001
	// tunnelPort is proxy B's, on the server's pod.
	tunnelPort = 15008
)

var outbound = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), outboundPort)

// tunnel is where proxy B listens.
func (s Site) tunnel() netip.AddrPort { return netip.AddrPortFrom(s.Server.IPv4, tunnelPort) }

// probe looks at proxy B while it is alive.
type probe func(ctx context.Context, site Site, alive func() error) error

// probeTLS proves that proxy B does what all are to be measured with.
func probeTLS(protocols ...string) probe {
	return func(ctx context.Context, site Site, alive func() error) error {
		// Some proxies connect the application before anything is sent, and end
		// what they have accepted if nobody is there.
		app, err := standIn(site)
		if err != nil {
			return err
		}
		defer app.Close()
		return peer.Probe{From: site.Client.NetNS, To: site.tunnel(), PKI: site.PKI, Scratch: site.Dir, Protocols: protocols}.Try(ctx, alive)
	}
}

// standIn listens in the application's place, which is not there yet. What
// connects waits in its queue.
func standIn(site Site) (listener net.Listener, err error) {
	err = site.Server.Do(func() (err error) {
		listener, err = net.Listen("tcp", site.App.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stand in for the application: %w", err)
	}
	return listener, nil
}

// pair is two processes.
type pair struct {
	site           Site
	client, server *process.Process
	version        string
}

// startPair runs both proxies; A as soon as B answers the probe, which may be nil.
func startPair(ctx context.Context, site Site, client, server process.Program, version string, probe probe) (_ Path, err error) {
	p := &pair{site: site, version: version}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	clientPod, serverPod := site.places()
	server.Log = filepath.Join(site.Dir, "server.log")
	if p.server, err = process.Start(serverPod, server); err != nil {
		return nil, err
	}
	if probe != nil {
		if err := probe(ctx, site, p.server.Alive); err != nil {
			return nil, fmt.Errorf("probe proxy B: %w", err)
		}
	}
	client.Log = filepath.Join(site.Dir, "client.log")
	if p.client, err = process.Start(clientPod, client); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pair) Address() netip.AddrPort { return outbound }

func (p *pair) Places() (client, server process.Place) { return p.site.places() }

func (p *pair) Processes() (client, server []int) { return p.client.Tree(), p.server.Tree() }

func (p *pair) Version() string { return p.version }

func (p *pair) Stop() error {
	var failed []error
	for _, side := range []*process.Process{p.client, p.server} {
		if side != nil {
			failed = append(failed, side.Stop())
		}
	}
	return errors.Join(failed...)
}
