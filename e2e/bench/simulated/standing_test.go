package simulated

import (
	"context"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// session is a connection of an application that lives for long.
type session struct {
	t      *testing.T
	stdin  io.WriteCloser
	stdout io.Reader
}

// hold opens a connection in a pod that lives until the test ends.
func (b *bed) hold(pod string, to netip.AddrPort) *session {
	b.t.Helper()
	command := exec.Command("/proc/self/exe", "-role", sessionRole, to.String())
	stdin, err := command.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.Pod(pod).Start(command); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	s := &session{b.t, stdin, stdout}
	s.talks()
	return s
}

// talks sends and hears something.
func (s *session) talks() {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, secret); err != nil {
		s.t.Errorf("the connection has ended: %v", err)
		return
	}
	if _, err := io.ReadFull(s.stdout, make([]byte, len(secret))); err != nil {
		s.t.Errorf("the connection has ended: %v", err)
	}
}

func (b *bed) endsReadable() {
	b.t.Helper()
	if seen := b.wire.seen(); seen.secret || seen.ports[port] {
		b.t.Errorf("on the wire: %+v", seen)
	}
}

// answers wants a connection to be carried.
func (b *bed) answers(pod string, to netip.AddrPort) {
	b.t.Helper()
	if err := b.dial(pod, to); err != nil {
		b.t.Errorf("%s to %s: %v", pod, to, err)
	}
}

// refuses wants a connection not to be carried, within the application's patience.
func (b *bed) refuses(pod string, to netip.AddrPort) {
	b.t.Helper()
	if err := b.dial(pod, to); err == nil {
		b.t.Errorf("%s to %s was answered", pod, to)
	}
}

// restart kills a node's ztunnel and waits until the next one has captured
// those pods by the pins and files that it found.
func (b *bed) restart(node string, pods ...string) {
	b.t.Helper()
	b.Ztunnel(node).Kill()
	if err := b.StartZtunnel(node); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	err := wait(ctx, func() error {
		var statuses []struct{ Name, State string }
		if err := b.Ztunnel(node).Dump(ctx, "pods", &statuses); err != nil {
			return err
		}
		captured := map[string]bool{}
		for _, s := range statuses {
			captured[s.Name] = captured[s.Name] || s.State == "Captured"
		}
		for _, pod := range pods {
			if !captured[pod] {
				return errNotCaptured(pod)
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// settled is once what all ztunnels know is on disk, which is a second after
// they learnt it.
func (b *bed) settled() {
	b.t.Helper()
	time.Sleep(1500 * time.Millisecond)
	for _, n := range b.config.Nodes {
		if _, err := os.Stat(filepath.Join(b.nodes[n].dir, "var/lib/ambit/snapshot.pb")); err != nil {
			b.t.Fatal(err)
		}
	}
}

type errNotCaptured string

func (e errNotCaptured) Error() string { return "pod " + string(e) + " is not captured" }

func at(pod *RunningPod) netip.AddrPort { return netip.AddrPortFrom(pod.IPv4, port) }

// TestStandingWithoutTheController takes the controller away, then ztunnels'
// processes, then the API server; what is known goes on, what is not is refused,
// and nothing is ever readable.
func TestStandingWithoutTheController(t *testing.T) {
	b := start(t, Config{
		Nodes: []string{"a", "b"},
		Pods:  []Pod{{Name: "client", Node: "a"}, {Name: "far", Node: "b", Port: port}, {Name: "near", Node: "a", Port: port}},
	})
	b.serve("far")
	b.serve("near")
	b.wire = watchWire(t, b.Network().Wire())
	far, near := b.Service("far"), b.Service("near")
	live := b.hold("client", far)
	b.settled()

	b.Controller().Kill()
	t.Run("known pods talk, on old connections and new ones", func(t *testing.T) {
		live.talks()
		for _, to := range []netip.AddrPort{far, near, at(b.Pod("far"))} {
			b.answers("client", to)
		}
	})
	t.Run("a ztunnel that is killed comes back by itself", func(t *testing.T) {
		b.restart("b", "far")
		b.answers("client", far)
		b.restart("a", "client", "near")
		b.answers("client", far)
		b.answers("client", near)
		b.logged("a", "direction=outbound", "transport=hbone", "dst.identity=spiffe://cluster.local/ns/mesh/sa/far")
	})
	t.Run("a new pod is captured, and sources do not know it", func(t *testing.T) {
		if _, err := b.AddPod(t.Context(), Pod{Name: "new", Node: "b"}, "new"); err != nil {
			t.Fatal(err)
		}
		b.serve("new")
		b.refuses("client", at(b.Pod("new")))
		// It has no certificate, and nobody to get one from.
		b.refuses("new", near)
		b.refuses("new", at(b.Pod("client")))
	})
	t.Run("a new pod of an identity that the node has talks", func(t *testing.T) {
		if _, err := b.AddPod(t.Context(), Pod{Name: "far-2", Node: "b"}, "far"); err != nil {
			t.Fatal(err)
		}
		b.answers("far-2", near)
		b.logged("a", "direction=inbound", "transport=hbone", "src.identity=spiffe://cluster.local/ns/mesh/sa/far")
	})
	b.endsReadable()

	if err := b.StopAPI(); err != nil {
		t.Fatal(err)
	}
	t.Run("without the API server, ztunnels come back too", func(t *testing.T) {
		b.restart("b", "far")
		b.restart("a", "client", "near")
		b.answers("client", far)
		b.answers("client", near)
	})
	t.Run("and a pod whose sandbox is made anew is captured in it", func(t *testing.T) {
		if _, err := b.Resandbox(t.Context(), "far"); err != nil {
			t.Fatal(err)
		}
		b.serve("far")
		b.answers("far", near)
		b.logged("a", "direction=inbound", "transport=hbone", "src.identity=spiffe://cluster.local/ns/mesh/sa/far")
		// Nobody can say where it is now.
		b.refuses("client", at(b.Pod("far")))
	})
	b.endsReadable()
}

// TestANodeThatRebootsWithoutTheController has no certificates: they were in
// memory. Connections are refused until the controller gives new ones.
func TestANodeThatRebootsWithoutTheController(t *testing.T) {
	b := start(t, Config{
		Nodes: []string{"a", "b"},
		Pods:  []Pod{{Name: "client", Node: "a"}, {Name: "far", Node: "b", Port: port}},
	})
	b.serve("far")
	b.wire = watchWire(t, b.Network().Wire())
	b.answers("client", b.Service("far"))
	b.settled()
	b.Controller().Kill()
	b.Ztunnel("b").Kill()
	if err := b.ForgetKeys("b"); err != nil {
		t.Fatal(err)
	}
	b.restart("b", "far")
	b.refuses("client", b.Service("far"))
	b.endsReadable()
	if err := b.StartController(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	b.awaitCapture()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := wait(ctx, func() error { return b.dial("client", b.Service("far")) }); err != nil {
		t.Error(err)
	}
	b.endsReadable()
	log, err := os.ReadFile(b.Ztunnel("b").LogPath())
	if err != nil || !strings.Contains(string(log), "certificate not fetched") {
		t.Errorf("ztunnel said nothing of the missing certificate (%v)", err)
	}
}
