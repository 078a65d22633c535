//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// A pod whose way out of the mesh is denied reaches what is excepted, by its name and on its port, and nothing else there; the
// mesh goes on. On trial the policy refuses nothing and is told of, without it everything is as it was.
func TestPodsLeaveTheMeshAsPolicySays(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-egress")
	const excepted, other = 18100, 18101
	for _, port := range []int{excepted, other} {
		listener, err := testbed.ListenOutside(port)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go greet(listener)
		packets, err := testbed.ListenPacketOutside(port)
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		go echo(packets)
	}
	byName := func(port int) string { return fmt.Sprintf("outside.example:%d", port) }
	byAddress := func(port int) string { return fmt.Sprintf("%s:%d", testbed.Outside, port) }
	open := func(when string) {
		t.Helper()
		for _, to := range []string{byName(excepted), byAddress(excepted), byAddress(other)} {
			for _, tool := range []string{"dial", "ask"} {
				p.eventually(fmt.Sprintf("%s: %s %s", when, tool, to), func() error { _, err := p.tool("client", tool, to); return err })
			}
		}
	}
	open("without a policy")

	bank := func(annotations string) string {
		return fmt.Sprintf(`
apiVersion: ambit.mesh/v1alpha1
kind: EgressPolicy
metadata: {name: bank, annotations: {%s}}
spec:
  action: Deny
  exceptions:
  - {dnsName: outside.example, ports: [{port: %d, protocol: Any}]}
`, annotations, excepted)
	}
	p.apply(bank(`ambit.mesh/dry-run: "true"`))
	ztunnel := p.ztunnel("n1")
	metrics := "http://" + strings.TrimSpace(p.kubectl("-n", "ambit-system", "get", "pod", ztunnel, "-o", "jsonpath={.status.podIP}")) + ":15020/metrics"
	for tool, protocol := range map[string]string{"dial": "TCP", "ask": "UDP"} {
		series := fmt.Sprintf(`ambit_egress_would_refuse_total{destination="%s",policy="e2e-egress/bank",protocol="%s",source="spiffe://cluster.local/ns/e2e-egress/sa/`, byName(other), protocol)
		p.eventually("the trial is counted for "+protocol, func() error {
			p.must("client", tool, byName(other))
			if all := p.must("client", "get", metrics); !strings.Contains(all, series) {
				return fmt.Errorf("no series %s", series)
			}
			return nil
		})
	}
	if log := p.kubectl("-n", "ambit-system", "logs", ztunnel, "--tail=-1"); !strings.Contains(log, `"egress policy on trial would refuse"`) || !strings.Contains(log, "e2e-egress/bank") {
		t.Error("nothing of the trial in the log")
	}

	p.apply(bank(""))
	p.eventually("another port is denied", func() error {
		if _, err := p.tool("client", "dial", byAddress(other)); err == nil || !strings.Contains(err.Error(), "ECONNREFUSED") {
			return fmt.Errorf("%v, want ECONNREFUSED", err)
		}
		return nil
	})
	for _, tool := range []string{"dial", "ask"} {
		p.must("client", tool, byName(excepted))
		if out, err := p.tool("client", tool, byAddress(other)); err == nil {
			t.Errorf("%s, another port: %s", tool, out)
		}
		if out, err := p.tool("client", tool, byName(other)); err == nil {
			t.Errorf("%s, another port of the name: %s", tool, out)
		}
	}
	p.answers("client", "http://server:8080/whoami")
	p.in("delete", "egresspolicies.ambit.mesh", "bank")
	open("without the policy again")
}

// greet says something to whoever connects.
func greet(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, "220 from outside\n")
		conn.Close()
	}
}

// echo sends back every datagram.
func echo(packets net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := packets.ReadFrom(b)
		if err != nil {
			return
		}
		packets.WriteTo(b[:n], from)
	}
}
