//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// onNode runs a command in all namespaces of a node.
func (p *place) onNode(node string, command ...string) string {
	p.Helper()
	out, err := p.bed.Run(p.Context(), "cluster", append([]string{"exec", node}, command...)...)
	if err != nil {
		p.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// state waits until a workload is in a state, and still published as HBONE.
func (p *place) state(pod, state string) {
	p.Helper()
	p.eventually(pod+" is "+state, func() error {
		o, err := p.workload(pod)
		if err == nil && (o.State != state || o.Protocol != "HBONE") {
			err = fmt.Errorf("it is %+v", o)
		}
		return err
	})
}

// A ztunnel that hangs is found out by its silence, and what it observed last is
// no longer told as if it were so. Nothing goes around it.
func TestStateIsStaleWhileZtunnelHangs(t *testing.T) {
	p := enrolledPair(t, "e2e-hang")
	pid := p.onNode("n2", "pgrep", "-x", "ztunnel")
	p.onNode("n2", "kill", "-STOP", pid)
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			p.onNode("n2", "kill", "-CONT", pid)
		}
	}
	defer resume()
	opened := p.opened(func() { p.tool("client", "get", "-timeout", "3s", "http://server:8080/whoami") })
	for _, packet := range opened {
		if packet.Port() != "15008" {
			t.Errorf("in plaintext while ztunnel hung: %s > %s", packet.Source, packet.Destination)
		}
	}
	p.state("server", "Stale")
	p.state("client", "Captured")
	if out, err := p.bed.Run(t.Context(), "ambit", "check"); err == nil || !strings.Contains(out, "AMB005") || !strings.Contains(out, "Stale") {
		t.Errorf("ambit check, while a node is silent: %v\n%s", err, out)
	}
	resume()
	p.state("server", "Captured")
	p.eventually("it serves again", func() error {
		_, err := p.tool("client", "get", "-timeout", "2s", "http://server:8080/whoami")
		return err
	})
}

// The root of trust is created once. Who deletes it gets no other one silently.
func TestTheRootOfTrustIsNotReplaced(t *testing.T) {
	p := newPlace(t, "e2e-root")
	backup := p.kubectl("-n", "ambit-system", "get", "secret", "ambit-ca", "-o", "yaml")
	certificate := func() string {
		return p.kubectl("-n", "ambit-system", "get", "secret", "ambit-ca", "-o", `jsonpath={.data.tls\.crt}`)
	}
	before := certificate()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		p.bed.Kubectl(ctx, "-n", "ambit-system", "scale", "deployment/controller", "--replicas=2")
		if out, err := p.bed.Kubectl(ctx, "-n", "ambit-system", "rollout", "status", "deployment/controller", "--timeout=120s"); err != nil {
			t.Errorf("the controller is back: %v %s", err, out)
		}
	})

	p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=0")
	p.kubectl("-n", "ambit-system", "wait", "--for=delete", "pod", "-l", "app=controller", "--timeout=60s")
	p.kubectl("-n", "ambit-system", "delete", "secret", "ambit-ca")
	p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=1")
	p.eventually("the controller says what is lost, and is not ready", func() error {
		log, err := p.bed.Kubectl(t.Context(), "-n", "ambit-system", "logs", "deployment/controller", "--tail=50")
		if err == nil && !strings.Contains(log, "RootLost") {
			err = fmt.Errorf("its log: %s", log)
		}
		return err
	})
	out, err := p.bed.Run(t.Context(), "ambit", "check")
	if err == nil || !strings.Contains(out, "AMB006") || !strings.Contains(out, "lost") {
		t.Errorf("ambit check, with the root lost: %v\n%s", err, out)
	}
	if _, err := p.bed.Kubectl(t.Context(), "-n", "ambit-system", "get", "secret", "ambit-ca"); err == nil {
		t.Error("a new root was made silently")
	}

	if err := p.bed.Apply(t.Context(), "ambit-system", []byte(withoutServerFields(backup))); err != nil {
		t.Fatal(err)
	}
	p.meshReady()
	if certificate() != before {
		t.Error("the root is another one than before")
	}
}

// withoutServerFields makes an object that was read one that can be created.
func withoutServerFields(manifest string) string {
	var kept []string
	for line := range strings.Lines(manifest) {
		if field := strings.TrimSpace(line); strings.HasPrefix(field, "resourceVersion:") || strings.HasPrefix(field, "uid:") || strings.HasPrefix(field, "creationTimestamp:") {
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

// checkSays waits until `ambit check` fails with all of these words.
func (p *place) checkSays(words ...string) {
	p.Helper()
	p.eventually("ambit check says "+strings.Join(words, ", "), func() error {
		out, err := p.bed.Run(p.Context(), "ambit", "check")
		if err == nil {
			return fmt.Errorf("it finds nothing wrong:\n%s", out)
		}
		for _, word := range words {
			if !strings.Contains(out, word) {
				return fmt.Errorf("no %q in\n%s", word, out)
			}
		}
		return nil
	})
}

// checkPasses waits until `ambit check` finds no error.
func (p *place) checkPasses() {
	p.Helper()
	p.eventually("ambit check finds nothing wrong", func() error {
		_, err := p.bed.Run(p.Context(), "ambit", "check")
		return err
	})
}

func TestAMalformedCNIConfigurationIsTold(t *testing.T) {
	p := newPlace(t, "e2e-cni")
	const file = "/etc/cni/net.d/00-broken.conflist"
	p.onNode("n3", "sh", "-c", "printf '{ \"name\": ' > "+file)
	defer func() {
		p.onNode("n3", "rm", "-f", file)
		p.checkPasses()
	}()
	p.checkSays("AMB005", "Node n3", "CNIConfigMalformed", "00-broken.conflist")
	if left := p.onNode("n3", "cat", file); left != `{ "name":` {
		t.Errorf("the file was changed: %q", left)
	}
}

// A node that has lost its bpffs gets one from the next ztunnel, and goes on as before.
func TestAMissingBPFFSIsMade(t *testing.T) {
	p := newPlace(t, "e2e-bpffs", modeLabel+"=ambient")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settle)
		defer cancel()
		if out, err := p.bed.Run(ctx, "cluster", "exec", "n3", "sh", "-c", "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf"); err != nil {
			t.Errorf("mount bpffs: %v %s", err, out)
		}
	})
	p.onNode("n3", "umount", "-l", "/sys/fs/bpf")
	p.kubectl("-n", "ambit-system", "delete", "pod", p.ztunnel("n3"), "--grace-period=1")
	p.meshReady()
	p.apply(pod(podOptions{name: "new", node: "n3", role: "wires"}) + pod(podOptions{name: "server", node: "n2", role: "wires"}))
	p.ready("new", "server")
	p.captured("new", "server")
	p.assertTunnelled(func() { p.must("new", "get", "http://"+p.ip("server")+":8080/whoami") })
	p.checkPasses()
}

func TestTrafficThatLeavesTheClusterIsPlain(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-leave")
	listener, err := testbed.ListenOutside(18099)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	seen := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		seen <- conn.RemoteAddr().String()
		io.WriteString(conn, "220 from outside\n")
		io.Copy(conn, conn)
	}()
	out := p.must("client", "till", testbed.Outside+":18099", "hello")
	if !strings.Contains(out, "220 from outside") || !strings.Contains(out, "hello") {
		t.Errorf("the client read %q", out)
	}
	if from := <-seen; !strings.HasPrefix(from, p.ip("client")+":") {
		t.Errorf("outside it came from %s, want %s", from, p.ip("client"))
	}
}
