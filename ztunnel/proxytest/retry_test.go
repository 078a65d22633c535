package proxytest

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/internal/conns"
)

var vip = netip.MustParseAddr("10.96.0.1")

// Where one endpoint of a service cannot be reached, whyever, a connection goes
// to another one: no byte of the application's was taken yet.
func TestAnEndpointThatIsDownIsNotTheEnd(t *testing.T) {
	for name, down := range map[string]func(m *Mesh) *Pod{
		"nobody takes tunnels":                 func(m *Mesh) *Pod { return m.Pod("down") },
		"its application does not listen":      func(m *Mesh) *Pod { return m.Pod("down").Start() },
		"it is outside the mesh":               func(m *Mesh) *Pod { return m.Pod("down", Plain) },
		"it is of this node, and not captured": func(m *Mesh) *Pod { return m.Pod("down", On("node-of-client")) },
	} {
		t.Run(name, func(t *testing.T) {
			m := New(t)
			client, up := m.Pod("client").Start(), m.Pod("up").Start()
			echoing(up)
			m.Service("web", vip.String(), down(m), up)
			const connections = 16 // all of them by chance to the right one: 1 in 65536
			for range connections {
				conn := client.Connect(vip)
				say(t, conn, "hi")
				hear(t, conn, "hi")
			}
			if retried, err := testutil.GatherAndCount(m.Metrics, "ambit_connection_retries_total"); err != nil || retried == 0 {
				t.Errorf("no retry was counted (%v)", err)
			}
		})
	}
}

func TestWithoutAnyEndpointThatAnswersTheFirstFailureCounts(t *testing.T) {
	m := New(t)
	client := m.Pod("client").Start()
	m.Service("web", vip.String(), m.Pod("a"), m.Pod("b"))
	client.Refused(vip)
	if line := m.Access(1)[0]; line["reason"] != "ConnectFailed" {
		t.Errorf("logged %v: %v", line["reason"], line["error"])
	}
}

// Who is not admitted does not go from door to door.
func TestADenialIsFinal(t *testing.T) {
	m := New(t)
	m.SetPolicy(func(*conns.Attempt) bool { return false })
	client, a, b := m.Pod("client").Start(), m.Pod("a").Start(), m.Pod("b").Start()
	echoing(a)
	echoing(b)
	m.Service("web", vip.String(), a, b)
	client.Refused(vip)
	for _, line := range m.Access(2) { // the client's side and one server's
		if line["reason"] != "PolicyDenied" {
			t.Errorf("logged %v", line)
		}
	}
}
