//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// clean fails unless nothing of Ambit is left on any node.
func (p *place) clean() {
	p.Helper()
	for _, node := range []string{"n1", "n2", "n3"} {
		left := p.onNode(node, "sh", "-c", "ls -d /sys/fs/bpf/ambit /opt/cni/bin/ambit-cni /var/lib/ambit/* 2>/dev/null; grep -l ambit /etc/cni/net.d/* 2>/dev/null; true")
		if left != "" {
			p.Errorf("left on %s: %s", node, left)
		}
	}
	if out := p.kubectl("get", "crd", "workloads.ambit.mesh", "--ignore-not-found"); out != "" {
		p.Errorf("left in the cluster: %s", out)
	}
}

// plain fails unless the pair talks, and around the tunnel.
func (p *place) plain() {
	p.Helper()
	opened := p.opened(func() {
		p.answers("client", "http://server:8080/whoami")
		p.must("server", "get", "http://"+p.ip("client")+":8080/whoami")
	})
	for _, packet := range opened {
		if packet.Port() == "15008" {
			p.Errorf("still by tunnel: %s > %s", packet.Source, packet.Destination)
		}
	}
	if len(opened) < 2 {
		p.Errorf("%d connections between the nodes, want 2: the capture would prove nothing", len(opened))
	}
}

// plainAndBack fails unless pods go on with plain networking, nothing is left on the nodes, and Ambit can come back.
func (p *place) plainAndBack() {
	p.Helper()
	p.clean()
	p.plain()
	if err := install(); err != nil {
		p.Fatal(err)
	}
	p.captured("client", "server")
	p.assertTunnelled(func() { p.answers("client", "http://server:8080/whoami") })
}

// comesBack has Ambit there for the next test, whatever becomes of this one.
func comesBack(t *testing.T) {
	t.Cleanup(func() {
		if err := install(); err != nil {
			t.Errorf("install again: %v", err)
		}
	})
}

// Also where nobody is left to do it in order.
func TestUninstallAfterSomebodyDeletedTheNamespace(t *testing.T) {
	p := enrolledPair(t, "e2e-uninstall")
	comesBack(t)
	p.kubectl("delete", "namespace", "ambit-system", "--wait")
	if _, err := p.bed.Run(t.Context(), "ambit", "uninstall", "--yes"); err != nil {
		t.Fatal(err)
	}
	p.plainAndBack()
}

// The mesh goes while applications ask all the time, and not one new connection fails: neither between pods that take plaintext,
// nor behind a waypoint, where clients are led past it first, nor between pods that refuse plaintext, which take it first.
func TestUninstallUnderLoadFailsNoNewConnection(t *testing.T) {
	comesBack(t)
	shop := newPlace(t, "e2e-farewell")
	shop.shop()
	shop.enrol(shop.pods()...)
	bound := waypointed(t, "e2e-farewell-waypoint", "server")
	bound.in("delete", "authorizationpolicies.ambit.mesh", "nobody") // which, without a waypoint, denies the port
	bound.in("wait", "--for=condition=ambit.mesh/Bound", "service/server", "--timeout=60s")
	refusing := strict(t, "e2e-farewell-strict")

	loads := append(refusing.loads(), bound.load("-pause", "2ms", "-connections", "fresh", "http://server:8080/work"))
	kept := bound.load("-pause", "2ms", "-connections", "kept", "http://server:8080/work")
	before, err := shop.shopStats()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shop.bed.Run(t.Context(), "ambit", "uninstall", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"lead clients past waypoints", "clean every node"} {
		if !strings.Contains(out, step) {
			t.Errorf("it does not say that it does %q:\n%s", step, out)
		}
	}
	for _, l := range loads {
		l.flawless("while Ambit is removed", l.end("while Ambit is removed"))
	}
	kept.end("kept connections, while Ambit is removed") // those of ztunnel end with it
	after, err := shop.shopStats()
	if err != nil {
		t.Fatal(err)
	}
	for name, was := range before.Fresh {
		if is := after.Fresh[name]; is.Failures > was.Failures || is.Exchanges <= was.Exchanges {
			t.Errorf("new %s connections: before %+v, after %+v", name, was, is)
		}
	}
	for _, object := range []string{"deployment/waypoint", "service/waypoint", "configmap/ambit-ca-root"} {
		if out := bound.in("get", object, "--ignore-not-found"); out != "" {
			t.Errorf("left: %s", out)
		}
	}
	refusing.plainAndBack()
}

// strict has a pair of pods of two nodes that refuse plaintext.
func strict(t *testing.T, name string) *place {
	t.Helper()
	p := enrolledPair(t, name)
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`)
	outside := newPlace(t, name+"-outside")
	outside.apply(pair())
	outside.ready("client")
	own := p.ownAddress()
	p.eventually("plaintext is refused", func() error {
		if out, err := outside.tool("client", "get", "-timeout", "3s", own); err == nil {
			return fmt.Errorf("answered %s", out)
		}
		return nil
	})
	return p
}

func (p *place) ownAddress() string { return "http://" + p.ip("server") + ":8080/work" }

// loads are two: by the Service, and by the pod's own address.
func (p *place) loads() (loads []*loading) {
	p.Helper()
	for _, url := range []string{"http://server:8080/work", p.ownAddress()} {
		loads = append(loads, p.load("-workers", "2", "-pause", "5ms", "-connections", "fresh", url))
	}
	return loads
}

// A namespace that refuses plaintext leaves the mesh under load, again and again.
func TestAStrictNamespaceLeavesAndFailsNoNewConnection(t *testing.T) {
	t.Parallel()
	p := strict(t, "e2e-leaves-strict")
	for range 3 {
		loads := p.loads()
		p.label(modeLabel + "-")
		p.released("client", "server")
		time.Sleep(2 * time.Second)
		for _, l := range loads {
			l.flawless("while its pods leave", l.end("while its pods leave"))
		}
		p.enrol("client", "server")
		p.answers("client", p.ownAddress())
	}
}
