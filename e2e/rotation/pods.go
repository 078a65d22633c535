package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

func pod(name, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  serviceAccountName: %[1]s
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: ambit.mesh/shop:dev
    imagePullPolicy: IfNotPresent
    args: [wires]
    env: [{name: LINGER, value: "0s"}]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`, name, node)
}

// deploy makes a pod on each of two nodes, captured, and returns their addresses.
func deploy(ctx context.Context, bed *testbed.Bed) (map[string]string, error) {
	for _, args := range [][]string{
		{"delete", "namespace", namespace, "--ignore-not-found", "--wait"},
		{"create", "namespace", namespace},
		{"label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"},
	} {
		if _, err := bed.Kubectl(ctx, args...); err != nil {
			return nil, err
		}
	}
	if err := bed.Apply(ctx, namespace, []byte(pod("one", "n1")+pod("two", "n2"))); err != nil {
		return nil, err
	}
	if _, err := bed.Kubectl(ctx, "-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=90s"); err != nil {
		return nil, err
	}
	addresses := map[string]string{}
	for _, name := range []string{"one", "two"} {
		err := testbed.Eventually(ctx, time.Minute, func(ctx context.Context) error {
			protocol, err := bed.Kubectl(ctx, "-n", namespace, "get", "workloads.ambit.mesh", name, "-o", "jsonpath={.status.state} {.status.protocol}")
			if err == nil && protocol != "Captured HBONE" {
				err = fmt.Errorf("%s is %s", name, protocol)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("wait for the capture: %w", err)
		}
		ip, err := bed.Kubectl(ctx, "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return nil, err
		}
		addresses[name] = strings.TrimSpace(ip)
	}
	return addresses, nil
}

// client is a pod that opens connections.
type client struct {
	command *exec.Cmd
	stdin   io.Closer
	said    *bufio.Reader
}

func startClient(ctx context.Context, bed *testbed.Bed, from, to string, rate int) (*client, error) {
	command := bed.Command(ctx, "kubectl", "-n", namespace, "exec", "-i", from, "--", "/usr/local/bin/shop", "tool", "rate", fmt.Sprintf("-per-second=%d", rate), to)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	said, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the client %s: %w", from, err)
	}
	c := &client{command, stdin, bufio.NewReader(said)}
	if line, err := c.said.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("the client %s said %q", from, line), err, stdin.Close(), command.Wait())
	}
	return c, nil
}

// stop has the client tell what became of its connections.
func (c *client) stop(row *rotation) error {
	var seen struct {
		Opened, Failed int
		Examples       []string
		Slowest        time.Duration
		Standing       string
	}
	told := errors.Join(c.stdin.Close(), json.NewDecoder(c.said).Decode(&seen))
	if err := errors.Join(told, c.command.Wait()); err != nil {
		return fmt.Errorf("a client: %w", err)
	}
	row.Opened += seen.Opened
	row.Failed += seen.Failed
	row.Examples = append(row.Examples, seen.Examples...)
	row.SlowestMS = max(row.SlowestMS, seen.Slowest.Milliseconds())
	row.Standing++
	if seen.Standing != "" {
		row.StandingLost++
		row.Examples = append(row.Examples, "standing: "+seen.Standing)
	}
	return nil
}
