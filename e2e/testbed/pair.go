package testbed

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// DeployPair makes a namespace anew, with a pod of these names on each of the nodes n1 and
// n2, and returns their addresses once both are captured. They serve what `shop wires` does.
func (b *Bed) DeployPair(ctx context.Context, namespace, first, second string) (map[string]string, error) {
	for _, args := range [][]string{
		{"delete", "namespace", namespace, "--ignore-not-found", "--wait"},
		{"create", "namespace", namespace},
		{"label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"},
	} {
		if _, err := b.Kubectl(ctx, args...); err != nil {
			return nil, err
		}
	}
	if err := b.Apply(ctx, namespace, []byte(wires(first, "n1")+wires(second, "n2"))); err != nil {
		return nil, err
	}
	if _, err := b.Kubectl(ctx, "-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=90s"); err != nil {
		return nil, err
	}
	addresses := map[string]string{}
	for _, name := range []string{first, second} {
		err := Eventually(ctx, time.Minute, func(ctx context.Context) error {
			protocol, err := b.Kubectl(ctx, "-n", namespace, "get", "workloads.ambit.mesh", name, "-o", "jsonpath={.status.state} {.status.protocol}")
			if err == nil && protocol != "Captured HBONE" {
				err = fmt.Errorf("%s is %s", name, protocol)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("wait for the capture: %w", err)
		}
		ip, err := b.Kubectl(ctx, "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return nil, err
		}
		addresses[name] = strings.TrimSpace(ip)
	}
	return addresses, nil
}

func wires(name, node string) string {
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
