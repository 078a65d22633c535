package variant

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/machine"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated"
)

const (
	captureTimeout = time.Minute
	clientPod      = "client"
	serverPod      = "server"
)

// captured is a mesh of the shipped binaries that captures both pods.
type captured struct {
	mesh           *simulated.Mesh
	address        netip.AddrPort
	client, server *simulated.Process
}

// Captured is the shipped ztunnel, which redirects what the client connects. The
// mesh makes the pods: what is to be captured has to be in its cgroups.
func Captured(sameNode bool) func(context.Context, Site) (Path, error) {
	nodes, far := []string{"a", "b"}, "b"
	if sameNode {
		nodes, far = []string{"a"}, "a"
	}
	return func(ctx context.Context, site Site) (_ Path, err error) {
		mesh, err := simulated.Start(ctx, simulated.Config{
			Nodes:   nodes,
			Pods:    []simulated.Pod{{Name: clientPod, Node: "a"}, {Name: serverPod, Node: far, Port: site.App.Port()}},
			Prepare: machine.Tune,
			Logs:    site.Dir,
		})
		if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, mesh.Stop())
			}
		}()
		ctx, cancel := context.WithTimeout(ctx, captureTimeout)
		defer cancel()
		if err := mesh.WaitCaptured(ctx); err != nil {
			return nil, err
		}
		return &captured{
			mesh: mesh, address: netip.AddrPortFrom(mesh.Pod(serverPod).IPv4, site.App.Port()),
			client: mesh.Ztunnel("a"), server: mesh.Ztunnel(far),
		}, nil
	}
}

func (c *captured) Address() netip.AddrPort { return c.address }

func (c *captured) Places() (client, server process.Place) {
	return c.mesh.Pod(clientPod), c.mesh.Pod(serverPod)
}

func (c *captured) Processes() (client, server []int) {
	return []int{c.client.PID()}, []int{c.server.PID()}
}

func (c *captured) Version() string { return version() }

func (c *captured) Stop() error {
	var ended []error
	for _, z := range []*simulated.Process{c.client, c.server} {
		select {
		case <-z.Ended():
			ended = append(ended, fmt.Errorf("the ztunnel of pod %s had ended", z.Pod().Name))
		default:
		}
	}
	return errors.Join(append(ended, c.mesh.Stop())...)
}
