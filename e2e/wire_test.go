//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// assertTunnelled runs something, and fails unless it was carried by packets to
// port 15008, and no connection between pods on different nodes was opened to
// another port.
func (p *place) assertTunnelled(run func()) {
	p.Helper()
	tunnelled := false
	for _, packet := range p.between(run) {
		tunnelled = tunnelled || packet.Port() == "15008"
		if packet.Opens() && packet.Port() != "15008" {
			p.Errorf("a connection went around the tunnel: %s > %s", packet.Source, packet.Destination)
		}
	}
	if !tunnelled {
		p.Error("nothing went to port 15008: the capture would prove nothing")
	}
}

// opened returns the first packets of the connections between this namespace's
// pods that crossed the network between nodes.
func (p *place) opened(run func()) []testbed.Packet {
	p.Helper()
	return slices.DeleteFunc(p.between(run), func(packet testbed.Packet) bool { return !packet.Opens() })
}

// between returns all packets from one of this namespace's pods to another that
// crossed the network between nodes.
func (p *place) between(run func()) []testbed.Packet {
	p.Helper()
	mine := map[string]bool{}
	var hosts []string
	for _, ip := range strings.Fields(p.in("get", "pods", "-o", "jsonpath={.items[*].status.podIPs[*].ip}")) {
		mine[ip] = true
		hosts = append(hosts, "host "+ip) // of all that other tests send, nothing
	}
	all, err := testbed.Capture(p.Context(), strings.Join(hosts, " or "), func() error { run(); return nil })
	if err != nil {
		p.Fatal(err)
	}
	return slices.DeleteFunc(all, func(packet testbed.Packet) bool {
		return !mine[host(packet.Source)] || !mine[host(packet.Destination)]
	})
}

// host cuts the port off tcpdump's ADDRESS.PORT.
func host(endpoint string) string { return endpoint[:strings.LastIndex(endpoint, ".")] }

// enrolledPair is a place with the captured pair, whose Service is known on every node.
func enrolledPair(t *testing.T, name string) *place {
	t.Helper()
	p := newPlace(t, name)
	p.pair()
	p.enrol("client", "server")
	p.answers("client", "http://server:8080/whoami")
	return p
}

// seenBy asks a server who its client is.
func (p *place) seenBy(client, url string) string {
	p.Helper()
	var who struct{ Client string }
	if err := json.Unmarshal([]byte(p.must(client, "get", url)), &who); err != nil {
		p.Fatal(err)
	}
	address, _, err := net.SplitHostPort(who.Client)
	if err != nil {
		p.Fatal(err)
	}
	return strings.TrimPrefix(address, "::ffff:")
}

// answers waits until a Service does: endpoints follow readiness with a delay, with and without a mesh.
func (p *place) answers(client, url string) {
	p.Helper()
	p.eventually(url+" answers", func() error {
		_, err := p.tool(client, "get", "-timeout", "3s", url)
		return err
	})
}

// What TCP promises, through the tunnel between two nodes.
func TestTCPIsCarriedFaithfully(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-wire")
	p.apply(pod(podOptions{name: "till", node: "n2", role: "till"}) + service("till", "till", "{name: till, port: 7000}"))
	p.ready("till")
	p.captured("till")
	p.eventually("the till's Service is known", func() error {
		_, err := p.tool("client", "dial", "till:7000")
		return err
	})

	t.Run("half-close: the server answers after the client's end", func(t *testing.T) {
		p.must("client", "wire", "server:7002", "100000")
	})
	t.Run("a server that speaks first", func(t *testing.T) {
		if out := p.must("client", "till", "till:7000", "one", "apple"); !strings.Contains(out, "220 till ready") || !strings.Contains(out, "250 receipt for one apple") {
			t.Errorf("the till said %q", out)
		}
	})
	t.Run("a reset arrives as a reset", func(t *testing.T) {
		_, err := p.tool("client", "wire", "server:7003", "10")
		// Who closes his half after the reset has come is told this way.
		notConnected := err != nil && strings.Contains(err.Error(), "shutdown: transport endpoint is not connected")
		if err == nil || !strings.Contains(err.Error(), "ECONNRESET") && !notConnected {
			t.Errorf("the client got %v, want ECONNRESET", err)
		}
	})
	t.Run("one GiB arrives whole", func(t *testing.T) {
		p.must("client", "wire", "server:7002", "1073741824")
	})
	t.Run("a thousand connections at once", func(t *testing.T) {
		if out := p.must("client", "flood", "server:7001", "1000"); !strings.Contains(out, "1000 of 1000") {
			t.Errorf("the flood said %q", out)
		}
	})
}

func TestTheServerSeesTheClientsAddress(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-address")
	for _, family := range []int{4, 6} {
		url := "http://" + net.JoinHostPort(p.ip("server", family), "8080") + "/whoami"
		var seen string
		p.assertTunnelled(func() { seen = p.seenBy("client", url) })
		if want := p.ip("client", family); !net.ParseIP(seen).Equal(net.ParseIP(want)) {
			t.Errorf("IPv%d: the server saw %s, the client has %s", family, seen, want)
		}
	}
}

func TestMeshToNonMeshAndBack(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-border")
	outside := newPlace(t, "e2e-outside")
	outside.apply(pair())
	outside.ready("client", "server")
	t.Run("out of the mesh", func(t *testing.T) {
		url := "http://" + outside.ip("server") + ":8080/whoami"
		if seen := p.seenBy("client", url); seen != p.ip("client") {
			t.Errorf("the server outside saw %s, want %s", seen, p.ip("client"))
		}
		p.answers("client", "http://server.e2e-outside:8080/whoami")
	})
	t.Run("into the mesh, as long as it is permissive", func(t *testing.T) {
		url := "http://" + p.ip("server") + ":8080/whoami"
		if seen := outside.seenBy("client", url); seen != outside.ip("client") {
			t.Errorf("the server saw %s, want %s", seen, outside.ip("client"))
		}
		outside.answers("client", "http://server.e2e-border:8080/whoami")
	})
}

func TestAPodReachesItself(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-self")
	for name, url := range map[string]string{
		"by loopback":    "http://127.0.0.1:8080/whoami",
		"by its address": "http://" + p.ip("server") + ":8080/whoami",
		"by its Service": "http://server:8080/whoami",
	} {
		if out := p.must("server", "get", url); !strings.Contains(out, "server@n2") {
			t.Errorf("%s it was answered by %s", name, out)
		}
	}
}

func TestPodsOfOneNode(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-node")
	p.apply(pod(podOptions{name: "a", node: "n3", role: "wires"}) + pod(podOptions{name: "b", node: "n3", role: "wires"}))
	p.ready("a", "b")
	p.enrol("a", "b")
	if seen := p.seenBy("a", "http://"+p.ip("b")+":8080/whoami"); seen != p.ip("a") {
		t.Errorf("b saw %s, want %s", seen, p.ip("a"))
	}
	p.must("a", "wire", p.ip("b")+":7002", "10000000")
}

func TestARefusedPortIsRefused(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-refused")
	for _, address := range []string{p.ip("server") + ":9999", "server:9999"} {
		_, err := p.tool("client", "till", address, "x")
		if err == nil || !strings.Contains(err.Error(), "ECONNREFUSED") {
			t.Errorf("%s: the client got %v, want ECONNREFUSED", address, err)
		}
	}
}

func TestAHostNetworkPodIsUntouched(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-host", modeLabel+"=ambient")
	p.pair()
	p.apply(strings.ReplaceAll(pod(podOptions{name: "host", node: "n2", role: "wires", extra: "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet", env: []string{`{name: LISTEN, value: ":18080"}`}}), "port: 8080}", "port: 18080}"))
	p.ready("host")
	p.captured("client", "server")
	o, err := p.workload("host")
	if err != nil {
		t.Fatal(err)
	}
	if o.State != "NotEnrolled" {
		t.Errorf("the hostNetwork pod is %+v", o)
	}
	p.must("client", "get", "http://"+p.ip("host")+":18080/whoami")
	p.must("host", "get", "http://"+p.ip("server")+":8080/whoami")
}

func TestNodePortReachesAnEnrolledPod(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-nodeport")
	p.apply(fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: np}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: %d}]}
`, 30481))
	for _, node := range []string{"172.30.0.11", "172.30.0.12"} {
		p.eventually("from an enrolled pod, by "+node, func() error {
			_, err := p.tool("client", "get", "-timeout", "3s", "http://"+node+":30481/whoami")
			return err
		})
	}
}
