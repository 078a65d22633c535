package simulated

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	serverRole = "serve"
	clientRole = "dial"
	// sessionRole carries its standard input and output.
	sessionRole = "session"
	port        = 8080
	// secret is what must not be readable on the wire.
	secret = "a text that is nowhere else"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "-role" {
		runRole(os.Args[2:])
		return
	}
	Isolate()
	os.Exit(m.Run())
}

// runRole is an application in a pod: it knows nothing of the mesh.
func runRole(args []string) {
	switch args[0] {
	case serverRole:
		listener, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("listening")
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	case clientRole:
		if err := echo(args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case askRole, resolveRole:
		run := func() error { return ask(args[1]) }
		if args[0] == resolveRole {
			run = func() error { return resolve(args[1], args[2]) }
		}
		if err := run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case sessionRole:
		conn, err := net.Dial("tcp", args[1])
		if err != nil {
			os.Exit(1)
		}
		go io.Copy(conn, os.Stdin)
		io.Copy(os.Stdout, conn)
	}
}

func echo(address string) error {
	const patience = 3 * time.Second // many times what an answer takes
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, secret); err != nil {
		return err
	}
	answer := make([]byte, len(secret))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != secret {
		return fmt.Errorf("sent %q, got %q", secret, answer)
	}
	return nil
}

// bed is a mesh for one test.
type bed struct {
	*Mesh
	t    *testing.T
	wire *wire // where a test looks at it all along
}

func start(t *testing.T, config Config) *bed {
	t.Helper()
	config.Logs = t.TempDir()
	mesh, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mesh.Stop(); err != nil {
			t.Error(err)
		}
	})
	b := &bed{Mesh: mesh, t: t}
	b.awaitCapture()
	return b
}

func (b *bed) awaitCapture() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := b.WaitCaptured(ctx); err != nil {
		b.t.Fatal(err)
	}
}

// serve runs a server in a pod until the test ends.
func (b *bed) serve(pod string) {
	b.t.Helper()
	command := exec.Command("/proc/self/exe", "-role", serverRole)
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
	said := make([]byte, len("listening"))
	if _, err := io.ReadFull(stdout, said); err != nil || string(said) != "listening" {
		b.t.Fatalf("server said %q, %v", said, err)
	}
}

// dial runs a client in a pod, which sends a secret and wants it back.
func (b *bed) dial(pod string, to netip.AddrPort) error {
	b.t.Helper()
	said := &strings.Builder{}
	command := exec.Command("/proc/self/exe", "-role", clientRole, to.String())
	command.Stdout, command.Stderr = said, said
	if err := b.Pod(pod).Start(command); err != nil {
		b.t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		return errors.New(strings.TrimSpace(said.String()))
	}
	return nil
}

// logged waits until a node's ztunnel has logged a connection with all these
// words.
func (b *bed) logged(node string, words ...string) {
	b.t.Helper()
	var log []byte
	for range 100 {
		var err error
		if log, err = os.ReadFile(b.Ztunnel(node).LogPath()); err != nil {
			b.t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			found := strings.Contains(line, "msg=connection ")
			for _, word := range words {
				found = found && strings.Contains(line, " "+word)
			}
			if found {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.t.Errorf("ztunnel of node %s logged no connection with %q:\n%s", node, words, log)
}

func TestPodsTalkThroughTheTunnel(t *testing.T) {
	b := start(t, Config{
		Nodes: []string{"a", "b"},
		Pods: []Pod{
			{Name: "client", Node: "a"}, {Name: "near", Node: "a"}, {Name: "far", Node: "b", Port: port}, {Name: "stranger", Node: "b", Outside: true},
		},
	})
	for _, pod := range []string{"near", "far", "stranger"} {
		b.serve(pod)
	}
	wire := watchWire(t, b.Network().Wire())

	t.Run("between nodes by HBONE, by address and by service", func(t *testing.T) {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(b.Pod("far").IPv4, port), netip.AddrPortFrom(b.Pod("far").IPv6, port), b.Service("far")} {
			if err := b.dial("client", to); err != nil {
				t.Errorf("%s: %v", to, err)
			}
		}
		client, far := "src.identity=spiffe://cluster.local/ns/mesh/sa/client", "dst.identity=spiffe://cluster.local/ns/mesh/sa/far"
		b.logged("a", "direction=outbound", "transport=hbone", client, far, "dst.service=far.mesh.svc.cluster.local")
		b.logged("b", "direction=inbound", "transport=hbone", client, far)
		if seen := wire.seen(); !seen.ports[15008] || seen.ports[port] || seen.secret {
			t.Errorf("on the wire: %+v", seen)
		}
	})
	t.Run("within a node without the wire", func(t *testing.T) {
		wire.reset()
		if err := b.dial("client", netip.AddrPortFrom(b.Pod("near").IPv4, port)); err != nil {
			t.Error(err)
		}
		b.logged("a", "direction=inbound", "transport=local", "dst.identity=spiffe://cluster.local/ns/mesh/sa/near")
		if seen := wire.seen(); seen.secret || seen.ports[port] { // tunnels of before may still close
			t.Errorf("on the wire: %+v", seen)
		}
	})
	t.Run("with a pod outside in plaintext, which the watch of the wire sees", func(t *testing.T) {
		wire.reset()
		if err := b.dial("client", netip.AddrPortFrom(b.Pod("stranger").IPv4, port)); err != nil {
			t.Error(err)
		}
		if seen := wire.seen(); !seen.secret || !seen.ports[port] {
			t.Errorf("on the wire: %+v", seen)
		}
	})
	t.Run("a pod that is labelled is captured", func(t *testing.T) {
		if err := b.Enrol("stranger", true); err != nil {
			t.Fatal(err)
		}
		b.awaitCapture()
		wire.reset()
		if err := b.dial("client", netip.AddrPortFrom(b.Pod("stranger").IPv4, port)); err != nil {
			t.Error(err)
		}
		b.logged("b", "direction=inbound", "transport=hbone", "dst.identity=spiffe://cluster.local/ns/mesh/sa/stranger")
		if seen := wire.seen(); seen.secret || seen.ports[port] {
			t.Errorf("on the wire: %+v", seen)
		}
	})
	t.Run("without its ztunnel a pod is not reached, and nothing is readable", func(t *testing.T) {
		b.Ztunnel("b").Kill()
		wire.reset()
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(b.Pod("far").IPv4, port), netip.AddrPortFrom(b.Pod("stranger").IPv6, port)} {
			if err := b.dial("client", to); err == nil {
				t.Errorf("%s answered", to)
			}
		}
		if seen := wire.seen(); seen.secret || seen.ports[port] {
			t.Errorf("on the wire: %+v", seen)
		}
	})
	t.Run("and is again with the next one", func(t *testing.T) {
		if err := b.StartZtunnel("b"); err != nil {
			t.Fatal(err)
		}
		b.awaitCapture()
		if err := b.dial("client", b.Service("far")); err != nil {
			t.Error(err)
		}
	})
}

// With OnDemand a ztunnel knows its own node's pods and what was asked for.
func TestOnDemandKnowsWhatIsAskedFor(t *testing.T) {
	const fleet, perService = 200, 10
	for _, onDemand := range []bool{false, true} {
		t.Run(fmt.Sprint(onDemand), func(t *testing.T) {
			b := start(t, Config{
				Nodes: []string{"a", "b"}, Pods: []Pod{{Name: "client", Node: "a"}, {Name: "far", Node: "b", Port: port}},
				Workloads: fleet, PodsPerService: perService, OnDemand: onDemand,
			})
			b.serve("far")
			known := func() float64 {
				metrics, err := b.Ztunnel("a").Metrics(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return metrics["ambit_config_addresses"]
			}
			before := known()
			if err := b.dial("client", b.Service("far")); err != nil {
				t.Error(err)
			}
			b.logged("a", "direction=outbound", "transport=hbone", "dst.identity=spiffe://cluster.local/ns/mesh/sa/far")
			// Nobody is there: ztunnel asks, learns the endpoints, and reaches none.
			if err := b.dial("client", FleetService(3)); err == nil {
				t.Error("a pod that does not exist answers")
			}
			var uids []struct{ UID string }
			if err := b.Ztunnel("a").Dump(t.Context(), "workloads", &uids); err != nil {
				t.Fatal(err)
			}
			ofFleet := 0
			for _, w := range uids {
				if strings.HasPrefix(w.UID, workload.PodUID("Kubernetes", "team-000", "payments-")) {
					ofFleet++
				}
			}
			if ofFleet != perService {
				t.Errorf("%d endpoints of the service are known, want %d", ofFleet, perService)
			}
			all := float64(fleet + fleet/perService)
			if onDemand && (before > 5 || known() > before+2+perService+1) || !onDemand && before < all {
				t.Errorf("knows %g addresses, then %g", before, known())
			}
		})
	}
}
