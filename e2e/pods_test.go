//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
)

// podOptions are what tests vary of a pod.
type podOptions struct {
	name, node, role string
	labels           []string
	env              []string
	// extra are lines of the pod's spec, at its indentation.
	extra string
	// image and args of others' programs, which tell that they are ready by taking
	// connections at a port.
	image string
	args  []string
	port  int
}

// pod returns the manifest of a pod of the shop's image, with a ServiceAccount
// of its own name.
func pod(o podOptions) string {
	labels := append([]string{"app: " + o.name}, o.labels...)
	env := []string{
		"{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
		"{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}",
		`{name: LINGER, value: "0s"}`,
	}
	env = append(env, o.env...)
	image, args := "ambit.mesh/shop:dev", "["+o.role+"]"
	probe := fmt.Sprintf("{httpGet: {path: /healthz, port: %d}, periodSeconds: 1}", healthPort(o.role))
	if o.image != "" {
		quoted, _ := json.Marshal(o.args) // strings can be
		image, args, probe = o.image, string(quoted), fmt.Sprintf("{tcpSocket: {port: %d}, periodSeconds: 1}", o.port)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  labels: {%[2]s}
spec:
  serviceAccountName: %[1]s
  nodeSelector: {kubernetes.io/hostname: %[3]s}
  terminationGracePeriodSeconds: 5
%[6]s
  containers:
  - name: app
    image: %[8]s
    imagePullPolicy: IfNotPresent
    args: %[4]s
    env: [%[5]s]
    readinessProbe: %[7]s
`, o.name, strings.Join(labels, ", "), o.node, args, strings.Join(env, ", "), o.extra, probe, image)
}

func healthPort(role string) int {
	switch role {
	case "ticker":
		return 8090
	case "shopper":
		return 8081
	}
	return 8080
}

// service returns the manifest of a Service for the pods of one app label.
// Ports are written as {name: http, port: 8080}.
func service(name, app string, ports ...string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
  ports: [%s]
`, name, app, strings.Join(ports, ", "))
}

// pair is a client on n1 and a server of TCP behaviours on n2.
func pair() string {
	return pod(podOptions{name: "client", node: "n1", role: "wires"}) +
		pod(podOptions{name: "server", node: "n2", role: "wires"}) +
		service("server", "server", "{name: http, port: 8080}", "{name: echo, port: 7001}", "{name: checksum, port: 7002}", "{name: reset, port: 7003}")
}

// pair deploys the pair, ready, and not enrolled.
func (p *place) pair() {
	p.Helper()
	p.apply(pair())
	p.ready("client", "server")
}
