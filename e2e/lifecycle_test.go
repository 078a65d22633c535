//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAJobCompletes(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-job", modeLabel+"=ambient")
	p.pair()
	p.apply(`apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: once, image: "ambit.mesh/shop:dev", imagePullPolicy: IfNotPresent, args: [tool, wire, "server:7002", "1000"]}
`)
	p.in("wait", "--for=condition=Complete", "job/once", "--timeout=90s")
}

func TestAnInitContainerReachesTheMesh(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-init", modeLabel+"=ambient")
	p.pair()
	p.captured("server")
	p.apply(pod(podOptions{name: "second", node: "n3", role: "wires", extra: `  initContainers:
  - {name: init, image: "ambit.mesh/shop:dev", imagePullPolicy: IfNotPresent, args: [tool, wire, "server:7002", "1000"]}`}))
	p.ready("second")
	p.captured("second")
}

// A rollout replaces every pod while a shopper asks all the time. The
// application does what Kubernetes asks of it: it serves for 5 s after SIGTERM.
func TestARolloutUnderLoadFailsNoRequest(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-rollout")
	p.shop()
	p.enrol(p.pods()...)
	before, err := p.shopStats()
	if err != nil {
		t.Fatal(err)
	}
	p.in("rollout", "restart", "deployment/web", "deployment/catalog")
	p.in("rollout", "status", "deployment/web", "--timeout=90s")
	p.in("rollout", "status", "deployment/catalog", "--timeout=90s")
	time.Sleep(7 * time.Second) // past the end of the old pods
	now, err := p.shopStats()
	if err != nil {
		t.Fatal(err)
	}
	fresh := now.Fresh["http"]
	if fresh.Failures > 0 || fresh.Exchanges <= before.Fresh["http"].Exchanges {
		t.Errorf("new requests during the rollout: before %+v, after %+v", before.Fresh["http"], fresh)
	}
}

// ztunnel is replaced on every node while applications ask all the time, and the
// database is connected: the next process takes over from the one that runs, which
// carries what it has until Kubernetes' patience ends.
func TestAnUpgradeOfZtunnelFailsNothing(t *testing.T) {
	p := newPlace(t, "e2e-upgrade")
	p.shop()
	p.enrol(p.pods()...)
	// So that its long-lived connections go through the mesh.
	p.in("rollout", "restart", "deployment/shopper")
	p.in("rollout", "status", "deployment/shopper", "--timeout=90s")
	p.captured(p.pods()...)
	var before shopStats
	p.eventually("the shopper uses every service", func() (err error) { before, err = p.shopStats(); return err })
	old := p.ztunnels("")
	p.kubectl("-n", "ambit-system", "rollout", "restart", "daemonset/ztunnel")
	// Not rollout status, which waits for the end of the former ones.
	p.eventually("every ztunnel is replaced", func() error {
		now := p.ztunnels("")
		if len(now) != len(old) || slices.ContainsFunc(now, func(name string) bool { return slices.Contains(old, name) }) {
			return fmt.Errorf("%q, after %q", now, old)
		}
		_, err := p.bed.Kubectl(p.Context(), append([]string{"-n", "ambit-system", "wait", "--for=condition=Ready", "--timeout=10s", "pod"}, now...)...)
		return err
	})
	time.Sleep(3 * time.Second) // the former ones are told to end, and carry on
	p.captured(p.pods()...)
	p.unharmed(before)
}

// ztunnel's process ends, gently or not: what it protects is not passed in
// plaintext meanwhile, probes go on, and the next process serves again.
func TestZtunnelRestart(t *testing.T) {
	for name, force := range map[string]bool{"gently": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			p := enrolledPair(t, "e2e-restart-"+name)
			args := []string{"-n", "ambit-system", "delete", "pod", p.ztunnel("n2"), "--wait=false"}
			if force {
				args = append(args, "--grace-period=0", "--force")
			}
			opened := p.opened(func() {
				p.kubectl(args...)
				for range 20 { // refused or served, never in plaintext
					p.tool("client", "get", "-timeout", "1s", "http://server:8080/whoami")
				}
			})
			for _, packet := range opened {
				if packet.Port() != "15008" {
					t.Errorf("in plaintext while ztunnel restarted: %s > %s", packet.Source, packet.Destination)
				}
			}
			p.meshReady()
			p.captured("client", "server")
			p.eventually("it serves again", func() error {
				_, err := p.tool("client", "get", "-timeout", "2s", "http://server:8080/whoami")
				return err
			})
			if restarts := p.in("get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"); restarts != "0 0" {
				t.Errorf("the application was restarted: %s", restarts)
			}
		})
	}
}

// A node loses its power and comes back: its pods start again, captured.
func TestPowerCutOfANode(t *testing.T) {
	p := enrolledPair(t, "e2e-power")
	if out, err := p.bed.Run(t.Context(), "cluster", "power-off", "n2"); err != nil {
		t.Fatal(err, out)
	}
	on := false
	powerOn := func() {
		if out, err := p.bed.Run(t.Context(), "cluster", "power-on", "n2"); err != nil {
			t.Fatal(err, out)
		}
		on = true
	}
	defer func() {
		if !on {
			powerOn()
		}
	}()
	p.eventually("the state of its workload is stale", func() error {
		o, err := p.workload("server")
		if err == nil && (o.State != "Stale" || o.Protocol != "HBONE") {
			err = fmt.Errorf("it is %+v", o)
		}
		return err
	})
	powerOn()
	p.within(3*time.Minute, "the node is ready", func() error {
		_, err := p.bed.Kubectl(t.Context(), "wait", "--for=condition=Ready", "node/n2", "--timeout=1s")
		return err
	})
	p.meshReady()
	p.within(3*time.Minute, "its pod is captured and serves again", func() error {
		o, err := p.workload("server")
		if err == nil && (o.State != "Captured" || o.Protocol != "HBONE") {
			err = fmt.Errorf("it is %+v", o)
		}
		if err == nil {
			_, err = p.tool("client", "get", "-timeout", "2s", "http://server:8080/whoami")
		}
		return err
	})
	p.assertTunnelled(func() { p.answers("client", "http://server:8080/whoami") })
}

// Without ztunnel an enrolled pod waits, so that it never runs unprotected; all
// else starts.
func TestTheGateHoldsEnrolledPodsOnly(t *testing.T) {
	p := newPlace(t, "e2e-gate", modeLabel+"=ambient")
	free := newPlace(t, "e2e-free")
	time.Sleep(2 * time.Second) // the nodes have written down who is enrolled
	p.withoutZtunnel("n1")

	p.apply(pod(podOptions{name: "held", node: "n1", role: "wires"}))
	free.apply(pod(podOptions{name: "free", node: "n1", role: "wires"}))
	free.ready("free")
	dns := pod(podOptions{name: "dns-like", node: "n1", role: "wires"})
	if err := p.bed.Apply(t.Context(), "kube-system", []byte(dns)); err != nil {
		t.Fatal(err)
	}
	defer p.bed.Kubectl(t.Context(), "-n", "kube-system", "delete", "pod/dns-like", "serviceaccount/dns-like", "--wait=false", "--grace-period=1")
	p.kubectl("-n", "kube-system", "wait", "--for=condition=Ready", "pod/dns-like", "--timeout=90s")

	if ready := p.in("get", "pod", "held", "-o", "jsonpath={.status.containerStatuses[0].ready}"); ready == "true" {
		t.Error("an enrolled pod started while nothing could capture it")
	}
	p.eventually("an event says why it waits", func() error {
		events := p.in("get", "events", "--field-selector", "involvedObject.name=held", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "ambit") {
			return fmt.Errorf("events: %s", events)
		}
		return nil
	})
	p.withZtunnel()
	p.ready("held")
	p.captured("held")
}

// withoutZtunnel stops ztunnel on one node, until withZtunnel.
func (p *place) withoutZtunnel(node string) {
	p.Helper()
	p.Cleanup(func() {
		// Whatever happened, the next test needs it. The test's own context is over.
		ctx, cancel := context.WithTimeout(context.Background(), settle)
		defer cancel()
		p.bed.Kubectl(ctx, "label", "node", "--all", "e2e.ambit.mesh/no-ztunnel-")
	})
	p.kubectl("label", "node", node, "e2e.ambit.mesh/no-ztunnel=true", "--overwrite")
	p.kubectl("-n", "ambit-system", "patch", "daemonset", "ztunnel", "--type=merge", "-p",
		`{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"e2e.ambit.mesh/no-ztunnel","operator":"DoesNotExist"}]}]}}}}}}}`)
	p.eventually("ztunnel has left "+node, func() error {
		out, err := p.bed.Kubectl(p.Context(), "-n", "ambit-system", "get", "pods", "-l", "app=ztunnel", "--field-selector", "spec.nodeName="+node, "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("still there: %s", out)
		}
		return err
	})
}

func (p *place) withZtunnel() {
	p.Helper()
	p.kubectl("label", "node", "--all", "e2e.ambit.mesh/no-ztunnel-")
	p.eventually("ztunnel is on every node", func() error {
		_, err := p.bed.Kubectl(p.Context(), "-n", "ambit-system", "rollout", "status", "daemonset/ztunnel", "--timeout=5s")
		return err
	})
}
