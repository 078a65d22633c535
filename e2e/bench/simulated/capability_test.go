package simulated

import (
	"context"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestEveryCapabilityIsNeeded: with those that the manifest gives, ztunnel does
// its work, and without any one of them it does not. There is none to be saved.
func TestEveryCapabilityIsNeeded(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		if err := works(t, "", 20*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	for name := range capabilities {
		t.Run(string(name), func(t *testing.T) {
			// Many times what it takes with all.
			if err := works(t, name, 3*time.Second); err == nil {
				t.Errorf("everything works without %s: the manifest need not give it", name)
			}
		})
	}
}

// works starts a mesh whose ztunnels lack a capability, and says what does not work.
func works(t *testing.T, without corev1.Capability, patience time.Duration) error {
	t.Helper()
	mesh, err := Start(t.Context(), Config{
		Nodes: []string{"a", "b"}, Logs: t.TempDir(), Without: without,
		Pods: []Pod{{Name: "client", Node: "a"}, {Name: "server", Node: "b", Port: port}},
	})
	if err != nil {
		return err
	}
	t.Cleanup(func() { // after what is served in its pods has ended
		if err := mesh.Stop(); err != nil {
			t.Error(err)
		}
	})
	b := &bed{Mesh: mesh, t: t}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.WaitCaptured(ctx); err != nil {
		return err
	}
	b.serve("server")
	return b.dial("client", netip.AddrPortFrom(b.Pod("server").IPv4, port))
}
