//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Without the controller everything that runs goes on, and a ztunnel that starts
// takes up its pods, keys and certificates from what the last one left.
func TestTheControllerMayBeDown(t *testing.T) {
	p := enrolledPair(t, "e2e-headless")
	time.Sleep(2 * time.Second) // for what nodes know to be on their disks
	p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=0")
	back := sync.OnceFunc(func() {
		p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=2")
		p.meshReady()
		p.checkPasses() // every node follows it
	})
	defer back()
	p.kubectl("-n", "ambit-system", "wait", "--for=delete", "pod", "-l", "app=controller", "--timeout=60s")
	p.assertTunnelled(func() { p.answers("client", "http://server:8080/whoami") })

	p.kubectl("-n", "ambit-system", "delete", "pod", p.ztunnel("n2"), "--grace-period=0", "--force")
	p.eventually("a ztunnel that started without a controller is ready", func() error {
		_, err := p.bed.Kubectl(t.Context(), "-n", "ambit-system", "rollout", "status", "daemonset/ztunnel", "--timeout=5s")
		return err
	})
	p.assertTunnelled(func() { p.answers("client", "http://server:8080/whoami") })

	// A pod that comes now is captured; who it is, nobody can tell the others.
	p.apply(pod(podOptions{name: "late", node: "n2", role: "wires"}))
	p.ready("late")
	if out, err := p.tool("client", "get", "-timeout", "5s", fmt.Sprintf("http://%s:8080/whoami", p.ip("late"))); err == nil {
		t.Errorf("a pod that nobody vouches for answers: %s", out)
	}

	// Nor whose a Service is that comes now: in plaintext the node's own rules would lead to a pod.
	p.in("expose", "pod", "server", "--name=newcomer", "--port=8080")
	vip := p.in("get", "service", "newcomer", "-o", "jsonpath={.spec.clusterIP}")
	p.eventually("they do", func() error {
		_, err := p.bed.Run(t.Context(), "cluster", "exec", "n1", "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+vip+"/8080")
		return err
	})
	for _, packet := range p.opened(func() {
		if out, err := p.tool("client", "get", "-timeout", "5s", fmt.Sprintf("http://%s:8080/whoami", vip)); err == nil {
			t.Errorf("a Service that nobody vouches for answers: %s", out)
		}
	}) {
		if packet.Port() != "15008" {
			t.Errorf("in plaintext: %s > %s", packet.Source, packet.Destination)
		}
	}
	back()
	p.assertTunnelled(func() { p.answers("client", fmt.Sprintf("http://%s:8080/whoami", vip)) })
}

// A controller that is killed is succeeded by the other, in seconds, and
// connections do not notice.
func TestAnotherControllerTakesOver(t *testing.T) {
	p := enrolledPair(t, "e2e-takeover")
	leader := func() string {
		return p.kubectl("-n", "ambit-system", "get", "lease", "controller", "-o", "jsonpath={.spec.holderIdentity}")
	}
	before := leader()
	p.kubectl("-n", "ambit-system", "delete", "pod", before, "--grace-period=0", "--force")
	began := time.Now()
	p.eventually("another controller leads", func() error {
		if now := leader(); now == before || now == "" {
			return errors.New(now + " leads")
		}
		return nil
	})
	t.Logf("another one leads after %s", time.Since(began))
	p.answers("client", "http://server:8080/whoami")
	// What needs the leader, and every node's acknowledgement.
	p.label(modeLabel + "-")
	p.released("client", "server")
	t.Logf("pods were let go after %s", time.Since(began))
	p.meshReady()
}
