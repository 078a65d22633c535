//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// A waypoint stands before what another namespace binds to it, Services and pods, while its
// owner allows that; without it nothing gets there.
func TestAWaypointIsSharedWithConsent(t *testing.T) {
	t.Parallel()
	owner := newPlace(t, "e2e-shared-owner")
	owner.ambit("waypoint", "apply", "-n", owner.name, "--for=all", "--wait=90s")
	p := newPlace(t, "e2e-shared", modeLabel+"=ambient")
	p.apply(pod(podOptions{name: "client", node: "n1", role: "wires"}) + pod(podOptions{name: "server", node: "n2", role: "wires"}) +
		pod(podOptions{name: "alone", node: "n3", role: "wires"}) + service("server", "server", "{name: http, port: 8080}") + `---
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/forbidden], ports: ["8080"]}}]}]
`)
	p.ready("client", "server", "alone")
	p.captured("client", "server", "alone")
	addressed := map[string]string{"the Service": "http://server:8080", "a pod of the Service": "http://" + p.ip("server") + ":8080", "a pod of none": "http://" + p.ip("alone") + ":8080"}
	says := func(reason string) {
		t.Helper()
		p.eventually("what is bound says "+reason, func() error {
			service := p.in("get", "service", "server", "-o", `jsonpath={.status.conditions[?(@.type=="ambit.mesh/Bound")].reason}`)
			pod := p.in("get", "workloads.ambit.mesh", "alone", "-o", "jsonpath={.status.binding}")
			return that(service == reason && strings.HasPrefix(pod, reason), "the Service says %q, the pod %q", service, pod)
		})
	}
	refused := func(when string) {
		t.Helper()
		for what, url := range addressed {
			if out, err := p.tool("client", "get", "-timeout", "3s", url+"/whoami"); err == nil {
				t.Errorf("%s %s was reached: %s", when, what, out)
			}
		}
	}
	p.label("ambit.mesh/use-waypoint=waypoint", "ambit.mesh/use-waypoint-namespace="+owner.name)
	says("NotAllowed")
	refused("without consent")
	p.checkSays("AMB017", owner.name+"/waypoint, whose listener does not allow this namespace")

	owner.ambit("waypoint", "apply", "-n", owner.name, "--allow-namespaces=all", "--wait=90s")
	says("InForce")
	for what, url := range addressed {
		p.eventually(what+" is reached", func() error {
			out, err := p.tool("client", "get", "-timeout", "3s", url+"/whoami")
			if err == nil && !strings.Contains(out, p.ip("client")+":") {
				err = fmt.Errorf("the application sees another client than %s: %s", p.ip("client"), out)
			}
			return err
		})
		if out, err := p.tool("client", "get", url+"/forbidden"); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("%s: what is forbidden was answered with %s %v", what, out, err)
		}
	}
	list := p.ambit("waypoint", "list")
	line := ""
	for l := range strings.Lines(list) {
		if strings.HasPrefix(l, owner.name+" ") || strings.HasPrefix(l, owner.name+"/waypoint ") {
			line = l
		}
	}
	if !strings.Contains(line, "all") {
		t.Errorf("ambit waypoint list does not show it:\n%s", list)
	}
	if out := p.ambit("waypoint", "status", "-n", owner.name); !strings.Contains(out, "Service "+p.name+"/server") {
		t.Errorf("its status does not name what is bound from elsewhere:\n%s", out)
	}

	owner.ambit("waypoint", "apply", "-n", owner.name, "--allow-namespaces=same")
	says("NotAllowed")
	refused("after consent was taken back")
}
