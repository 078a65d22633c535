package main

import (
	"net/netip"
	"testing"
	"time"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func refuseScripts() []script {
	return []script{{name: "refused", refused: true, client: seeRefusal}}
}

func seeRefusal(a *actor) {
	start := time.Now()
	c, err := a.dial(0)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
		a.see("connected, then %s", word(err))
	} else if word(err) == "ECONNRESET" {
		a.see("connected, then ECONNRESET") // so early that connecting itself tells
	} else {
		a.see("%s", word(err))
	}
	if time.Since(start) < soon {
		a.see("soon")
	}
}

// What cannot be reached is refused, and no byte, end or silence is taken for an answer.
func testRefusals(t *testing.T, b *bed, paths map[string]*path) {
	eachPath(t, paths, func(t *testing.T, p *path) {
		t.Run("port", func(t *testing.T) {
			for range 3 { // without a tunnel, and with one
				if saw, want := p.play(t, "refused", nil).client, "ECONNREFUSED, soon"; saw != want {
					t.Errorf("saw %q, want %q", saw, want)
				}
			}
		})
		t.Run("pod", func(t *testing.T) {
			nobody := p.server.pod.IPv4.As4()
			nobody[3] = 250
			to := netip.AddrPortFrom(netip.AddrFrom4(nobody), appPort)
			if p.name != nonePath {
				b.publishGone(to.Addr(), p.server.pod.Node.Name)
			}
			both, err := p.tryPlay("refused", to, nil)
			if err != nil {
				t.Fatal(err)
			}
			saw := both.client
			if want := "EHOSTUNREACH"; saw != want && saw != want+", soon" {
				t.Errorf("saw %q, want %q", saw, want)
			}
		})
		b.wantCarried(t, p, "")
	})
}

// publishGone publishes a captured pod that is not there any more.
func (b *bed) publishGone(ip netip.Addr, node string) {
	b.t.Helper()
	workloadtest.Apply(b.t, b.store, &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", "gone-"+node), Name: "gone-" + node, Namespace: "shop", ServiceAccount: "gone",
		TrustDomain: "cluster.local", Node: node, ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs(ip.String()), TunnelProtocol: api.TunnelProtocol_HBONE,
	})
}
