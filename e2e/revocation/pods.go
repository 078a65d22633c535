package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const deny = `apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: revoked}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/` + namespace + `/sa/client]}}]
`

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

// deploy makes client and server, captured, and returns the server's address.
func deploy(ctx context.Context, bed *testbed.Bed) (string, error) {
	for _, args := range [][]string{
		{"delete", "namespace", namespace, "--ignore-not-found", "--wait"},
		{"create", "namespace", namespace},
		{"label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"},
	} {
		if _, err := bed.Kubectl(ctx, args...); err != nil {
			return "", err
		}
	}
	if err := bed.Apply(ctx, namespace, []byte(pod("client", "n1")+pod("server", "n2"))); err != nil {
		return "", err
	}
	if _, err := bed.Kubectl(ctx, "-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=90s"); err != nil {
		return "", err
	}
	err := testbed.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		for _, name := range []string{"client", "server"} {
			protocol, err := bed.Kubectl(ctx, "-n", namespace, "get", "workloads.ambit.mesh", name, "-o", "jsonpath={.status.state} {.status.protocol}")
			if err != nil {
				return err
			}
			if protocol != "Captured HBONE" {
				return fmt.Errorf("%s is %s", name, protocol)
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("wait for the capture: %w", err)
	}
	ip, err := bed.Kubectl(ctx, "-n", namespace, "get", "pod", "server", "-o", "jsonpath={.status.podIP}")
	return strings.TrimSpace(ip), err
}
