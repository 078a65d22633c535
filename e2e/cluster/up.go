package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// apiLocalPort is where the API server is on 127.0.0.1, unless taken.
const apiLocalPort = 16443

// These cover a host that is busy with something else.
const (
	apiPatience  = 3 * time.Minute
	nodePatience = 3 * time.Minute
)

// up brings up whatever is not up.
func (c *cluster) up(ctx context.Context) error {
	p := newProgress(c.out)
	if err := ensurePackages(ctx, p); err != nil {
		return err
	}
	if err := c.build(ctx); err != nil {
		return err
	}
	// From here on everything is there, and the time is the cluster's own.
	p = newProgress(c.out)
	if err := c.prepareState(); err != nil {
		return err
	}
	p.start("starting machines")
	stop := p.watch()
	defer stop()
	if err := ensureSwitch(c.layout); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	for _, m := range machines() {
		if err := powerOn(c.layout, m); err != nil {
			return fmt.Errorf("power on %s: %w", m.name, err)
		}
	}
	server, err := c.openDoor()
	if err != nil {
		return err
	}
	p.done("machines started: " + controlPlane + " " + strings.Join(nodeNames, " "))
	return c.waitUntilUp(ctx, p, server)
}

// prepareState makes the state folder with what all machines share.
func (c *cluster) prepareState() error {
	if err := os.MkdirAll(c.images(), 0o755); err != nil {
		return fmt.Errorf("make state folder: %w", err)
	}
	if err := replaceFile(filepath.Join(c.state, ".gitignore"), []byte("*\n"), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(c.pki()); err != nil {
		// Machines that run with other certificates would never be Ready.
		if pids, err := processes(c.cgroup()); err == nil && len(pids) > 0 {
			return fmt.Errorf("a cluster named %s runs, and its state is not in %s: take it down first", c.name, c.state)
		}
	}
	if err := ensurePKI(c.pki()); err != nil {
		return err
	}
	for _, binary := range []string{"pause", "coredns"} {
		tar, err := os.ReadFile(filepath.Join(c.cache(), "images", binary+".tar"))
		if err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		if err := replaceFile(filepath.Join(c.images(), binary+".tar"), tar, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// openDoor starts the forwarder to the API server and writes the kubeconfig
// that names it. Once written, the port stays.
func (c *cluster) openDoor() (*api, error) {
	control := machines()[0]
	target := netip.AddrPortFrom(control.address4(), apiPort)
	port, known := c.doorPort()
	local, err := ensureForwarder(c.layout, control, port, target)
	if errors.Is(err, syscall.EADDRINUSE) && !known {
		local, err = ensureForwarder(c.layout, control, 0, target)
	}
	if err != nil {
		return nil, err
	}
	server := "https://" + local.String()
	content, err := newKubeconfig(c.pki(), server, "admin")
	if err != nil {
		return nil, err
	}
	if err := replaceFile(c.kubeconfig(), content, 0o600); err != nil {
		return nil, err
	}
	return newAPI(server, c.pki(), "admin")
}

// doorPort is the port of the kubeconfig, or the usual one.
func (c *cluster) doorPort() (port uint16, known bool) {
	content, err := os.ReadFile(c.kubeconfig())
	if err != nil {
		return apiLocalPort, false
	}
	for line := range strings.Lines(string(content)) {
		if address, ok := strings.CutPrefix(strings.TrimSpace(line), "server: https://"); ok {
			if local, err := netip.ParseAddrPort(address); err == nil {
				return local.Port(), true
			}
		}
	}
	return apiLocalPort, false
}

func (c *cluster) waitUntilUp(ctx context.Context, p *progress, server *api) error {
	p.start("waiting for the API server")
	if err := waitFor("the API server", apiPatience, func() bool { return ctx.Err() != nil || server.ready() }); err != nil {
		return c.explain(err, controlPlane)
	}
	p.done("API server ready")
	p.start("waiting for nodes")
	if err := c.applyDNS(ctx); err != nil {
		return err
	}
	for _, n := range nodes() {
		if err := c.waitForNode(ctx, server, n, ""); err != nil {
			return err
		}
	}
	p.done("nodes Ready: " + strings.Join(nodeNames, " "))
	p.start("waiting for DNS")
	if err := c.kubectl(ctx, nil, "rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=120s"); err != nil {
		return err
	}
	// Without it, the API server refuses bare Pods.
	err := waitFor("the default ServiceAccount", apiPatience, func() bool {
		return ctx.Err() != nil || server.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", "", nil, nil) == nil
	})
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.done("DNS answers; the cluster is up: export KUBECONFIG=" + c.kubeconfig())
	return nil
}

// waitForNode waits until a node is Ready, since it has another boot ID than
// the given one, and tells Kubernetes its pod ranges.
func (c *cluster) waitForNode(ctx context.Context, server *api, m machine, oldBootID string) error {
	found := func(ok func(node) bool) func() bool {
		return func() bool {
			if ctx.Err() != nil {
				return true
			}
			list, err := server.nodes(ctx)
			if err != nil {
				return false
			}
			for _, n := range list {
				if n.Metadata.Name == m.name && n.Status.NodeInfo.BootID != oldBootID {
					return ok(n)
				}
			}
			return false
		}
	}
	if err := waitFor("node "+m.name+" to register", nodePatience, found(func(node) bool { return true })); err != nil {
		return c.explain(err, m.name)
	}
	if err := server.setPodCIDRs(ctx, m); err != nil {
		return err
	}
	if err := waitFor("node "+m.name+" to be Ready", nodePatience, found(node.ready)); err != nil {
		return c.explain(err, m.name)
	}
	return ctx.Err()
}

// explain adds the end of a machine's console to an error.
func (c *cluster) explain(err error, machine string) error {
	console := filepath.Join(c.disk(machine), "console.log")
	return fmt.Errorf("%w\nlast lines of %s:\n%s", err, console, lastLines(console, 10))
}

func (c *cluster) applyDNS(ctx context.Context) error {
	manifest, err := render("coredns.yaml", valuesOf(machine{}))
	if err != nil {
		return err
	}
	return c.kubectl(ctx, manifest, "apply", "--server-side", "--force-conflicts", "-f", "-")
}

// kubectl runs it quietly; what it says matters only if it ends badly.
func (c *cluster) kubectl(ctx context.Context, stdin []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, c.binary("kubectl"), append([]string{"--kubeconfig=" + c.kubeconfig()}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", args[0], err, output)
	}
	return nil
}
