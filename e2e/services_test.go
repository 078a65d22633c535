//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// served asks many times and returns which pods answered.
func (p *place) served(client, url string, n int) map[string]int {
	p.Helper()
	by := map[string]int{}
	for answer := range strings.Lines(p.must(client, "get", "-n", fmt.Sprint(n), url)) {
		_, rest, _ := strings.Cut(answer, `"served":"`)
		name, _, _ := strings.Cut(rest, `"`)
		by[name]++
	}
	return by
}

// Traffic of enrolled pods does not pass kube-proxy, so the tunnel does what
// kube-proxy would have done, for every kind of Service.
func TestEveryKindOfService(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-services")
	p.apply(pod(podOptions{name: "client", node: "n1", role: "wires"}) +
		pod(podOptions{name: "a", node: "n1", role: "wires", labels: []string{"group: ab"}}) +
		pod(podOptions{name: "b", node: "n2", role: "wires", labels: []string{"group: ab"}}) +
		pod(podOptions{name: "unready", node: "n3", role: "wires", labels: []string{"group: late"}, env: []string{`{name: LISTEN, value: ":8079"}`}}))
	p.ready("client", "a", "b")
	p.apply(`apiVersion: v1
kind: Service
metadata: {name: both}
spec: {selector: {group: ab}, ports: [{name: web, port: 80, targetPort: 8080}, {name: echo, port: 7, targetPort: 7001}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {selector: {group: ab}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: close}
spec: {selector: {group: ab}, trafficDistribution: PreferSameNode, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {group: ab}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {selector: {app: b}, clusterIP: None, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {selector: {group: ab}, ipFamilies: [IPv6], ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: both.e2e-services.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {selector: {group: late}, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: 8079}]}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {selector: {group: late}, ports: [{port: 80, targetPort: 8079}]}
---
apiVersion: v1
kind: Service
metadata: {name: manual}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: manual-1, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: ["` + p.ip("b") + `"]}]
`)
	p.enrol("client", "a", "b")
	p.eventually("the services are known", func() error {
		_, err := p.tool("client", "get", "http://manual/whoami")
		return err
	})

	t.Run("ClusterIP spreads over its endpoints", func(t *testing.T) {
		if by := p.served("client", "http://both/whoami", 40); by["a@n1"] == 0 || by["b@n2"] == 0 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("the second port is another target port", func(t *testing.T) {
		p.must("client", "flood", "both:7", "3")
	})
	t.Run("internalTrafficPolicy Local stays on the node", func(t *testing.T) {
		if by := p.served("client", "http://local/whoami", 20); by["a@n1"] != 20 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("trafficDistribution PreferSameNode prefers the node", func(t *testing.T) {
		if by := p.served("client", "http://close/whoami", 20); by["a@n1"] != 20 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("ClientIP affinity stays with one endpoint", func(t *testing.T) {
		if by := p.served("client", "http://sticky/whoami", 20); len(by) != 1 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("headless", func(t *testing.T) {
		if by := p.served("client", "http://headless:8080/whoami", 3); by["b@n2"] != 3 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("IPv6 alone", func(t *testing.T) {
		p.served("client", "http://six/whoami", 4)
	})
	t.Run("ExternalName", func(t *testing.T) {
		p.served("client", "http://alias/whoami", 3)
	})
	t.Run("publishNotReadyAddresses", func(t *testing.T) {
		p.served("client", "http://early/whoami", 3)
	})
	t.Run("without a ready endpoint it is refused", func(t *testing.T) {
		if out, err := p.tool("client", "get", "http://late/whoami"); err == nil {
			t.Errorf("answered: %s", out)
		}
	})
	t.Run("selectorless", func(t *testing.T) {
		if by := p.served("client", "http://manual/whoami", 3); by["b@n2"] != 3 {
			t.Errorf("answered by %v", by)
		}
	})
	t.Run("the Kubernetes API", func(t *testing.T) {
		p.must("client", "dial", "kubernetes.default:443")
	})
}

func TestStatefulSetNames(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-stateful", modeLabel+"=ambient")
	p.apply(pod(podOptions{name: "client", node: "n1", role: "wires"}) + `---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - name: db
        image: ambit.mesh/shop:dev
        imagePullPolicy: IfNotPresent
        args: [wires]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`)
	p.in("rollout", "status", "statefulset/db", "--timeout=90s")
	p.ready("client")
	p.captured("client", "db-0", "db-1")
	for _, name := range []string{"db-0", "db-1"} {
		p.eventually(name+" is found by name", func() error {
			out, err := p.tool("client", "get", "http://"+name+".db:8080/whoami")
			if err == nil && !strings.Contains(out, `"`+name+`@`) {
				err = fmt.Errorf("answered by %s", out)
			}
			return err
		})
	}
}
