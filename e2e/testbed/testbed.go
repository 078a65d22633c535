// Package testbed is what the demonstration and the end-to-end tests do with
// the cluster on this machine: kubectl, commands in pods, the node's power
// switch, and captures of what crosses the network between nodes.
//
// Everything goes through the forwarder on 127.0.0.1 or into namespaces; the
// machine's own network namespace sends nothing to cluster addresses.
package testbed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Bed is the cluster of one checkout.
type Bed struct {
	// root of the checkout.
	root string
}

// Find looks for the cluster of the checkout that the working folder is in.
func Find() (*Bed, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "arch_test.go")); err == nil {
			bed := &Bed{root: dir}
			if _, err := os.Stat(bed.Kubeconfig()); err != nil {
				return nil, fmt.Errorf("no cluster is up (%w): run make cluster", err)
			}
			return bed, nil
		}
	}
	return nil, fmt.Errorf("not in a checkout of Ambit")
}

// Kubeconfig is the path of the cluster's kubeconfig.
func (b *Bed) Kubeconfig() string { return filepath.Join(b.root, ".cluster", "kubeconfig") }

// Root is the root of the checkout.
func (b *Bed) Root() string { return b.root }

// Run runs one of the checkout's programs (bin/NAME) and returns its output.
func (b *Bed) Run(ctx context.Context, name string, args ...string) (string, error) {
	return b.run(ctx, nil, name, args...)
}

func (b *Bed) run(ctx context.Context, input []byte, name string, args ...string) (string, error) {
	cmd := b.Command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()+" "+out.String()))
	}
	return out.String(), nil
}

// Command prepares one of the checkout's programs.
func (b *Bed) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.root, "bin", name), args...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.Kubeconfig(), "NO_COLOR=1")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Kubectl runs kubectl.
func (b *Bed) Kubectl(ctx context.Context, args ...string) (string, error) {
	return b.Run(ctx, "kubectl", args...)
}

// Apply applies manifests in a namespace.
func (b *Bed) Apply(ctx context.Context, namespace string, manifests []byte) error {
	_, err := b.run(ctx, manifests, "kubectl", "-n", namespace, "apply", "-f", "-")
	return err
}

// Tool runs a one-shot client of the shop in a pod (or deploy/NAME).
func (b *Bed) Tool(ctx context.Context, namespace, pod string, args ...string) (string, error) {
	all := append([]string{"-n", namespace, "exec", pod, "--", "/usr/local/bin/shop", "tool"}, args...)
	return b.Kubectl(ctx, all...)
}

// Eventually asks until there is no error, or the time is over.
func Eventually(ctx context.Context, within time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
