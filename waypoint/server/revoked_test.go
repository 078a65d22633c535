package server_test

import (
	"errors"
	"io"
	"net"
	"testing"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// Whose certificate is revoked, the client's or the endpoint's, is cut from what
// lives through a waypoint; another client's connection goes on.
func TestRevocationCutsWhatLivesThroughTheWaypoint(t *testing.T) {
	echo := func(c net.Conn) { io.Copy(c, c) }
	for name, whose := range map[string]func(client, endpoint *waypointtest.Pod) spiffe.ID{
		"the client's":   func(client, _ *waypointtest.Pod) spiffe.ID { return client.ID },
		"the endpoint's": func(_, endpoint *waypointtest.Pod) spiffe.ID { return endpoint.ID },
	} {
		t.Run(name, func(t *testing.T) {
			m, client, endpoint, s := start(t, api.AppProtocol_TCP, everybody)
			m.Bind(s)
			endpoint.Serve(endpoint.ID, echo)
			other := m.Pod("other", "10.9.0.4")
			revoked, kept := client.Dial(vip), other.Dial(vip)
			both := []net.Conn{revoked, kept}
			for _, c := range both {
				exchange(t, c)
			}
			id := whose(client, endpoint)
			certificate, err := m.Certs.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			m.Revoke(certificate.Leaf)
			if _, err := revoked.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the connection ends with %v", err)
			}
			if id == client.ID {
				exchange(t, kept)
			}
			for _, line := range m.Lines("connection", map[bool]int{true: 1, false: 2}[id == client.ID]) {
				if line["reason"] != "Revoked" {
					t.Errorf("the record says %v: %v", line["reason"], line["error"])
				}
			}
		})
	}
}

func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
