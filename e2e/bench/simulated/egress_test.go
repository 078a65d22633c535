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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

const (
	// askRole sends a datagram and wants it back.
	askRole = "ask"
	// resolveRole asks a DNS server for a name.
	resolveRole = "resolve"
)

// ask is askRole.
func ask(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := io.WriteString(conn, secret); err != nil {
		return err
	}
	answer := make([]byte, len(secret))
	_, err = io.ReadFull(conn, answer)
	return err
}

// resolve is resolveRole: it prints the addresses.
func resolve(server, name string) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	addresses, err := resolver.LookupNetIP(context.Background(), "ip4", name)
	for _, a := range addresses {
		fmt.Println(a)
	}
	return err
}

// role runs one in a pod, to its end, and returns what it said.
func (b *bed) role(pod string, args ...string) (string, error) {
	b.t.Helper()
	said := &strings.Builder{}
	command := exec.Command("/proc/self/exe", append([]string{"-role"}, args...)...)
	command.Stdout, command.Stderr = said, said
	if err := b.Pod(pod).Start(command); err != nil {
		b.t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		return "", errors.New(strings.TrimSpace(said.String()))
	}
	return strings.TrimSpace(said.String()), nil
}

// serveOutside has a node's own network serve what the mesh does not know: an echo at two ports, and the names of a world of one
// host, that node.
func (b *bed) serveOutside(node string, ports ...int) netip.Addr {
	b.t.Helper()
	outside := b.Network().Node(node)
	if err := outside.Do(func() error {
		for _, port := range ports {
			listener, err := net.Listen("tcp", fmt.Sprint(":", port))
			if err != nil {
				return err
			}
			packets, err := net.ListenPacket("udp", fmt.Sprint(":", port))
			if err != nil {
				return err
			}
			b.t.Cleanup(func() { listener.Close(); packets.Close() })
			go echoStreams(listener)
			go answerPackets(packets, func(m []byte) []byte { return m })
		}
		names, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		b.t.Cleanup(func() { names.Close() })
		go answerPackets(names, func(m []byte) []byte { return nameIs(m, outside.IPv4) })
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return outside.IPv4
}

func echoStreams(listener net.Listener) {
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
}

func answerPackets(packets net.PacketConn, answer func([]byte) []byte) {
	b := make([]byte, 4096)
	for {
		n, from, err := packets.ReadFrom(b)
		if err != nil {
			return
		}
		packets.WriteTo(answer(b[:n]), from)
	}
}

// nameIs answers a question for an IPv4 address.
func nameIs(m []byte, ip netip.Addr) []byte {
	var asked dnsmessage.Message
	if asked.Unpack(m) != nil || len(asked.Questions) != 1 {
		return nil
	}
	asked.Response, asked.Additionals = true, nil
	if q := asked.Questions[0]; q.Type == dnsmessage.TypeA {
		asked.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: ip.As4()},
		}}
	}
	answer, err := asked.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// resolveBy has a node's ztunnel ask a DNS server, as the kubelet sets it up for a pod.
func (b *bed) resolveBy(node string, server netip.Addr) {
	b.t.Helper()
	path := filepath.Join(b.dir, "containers", b.Ztunnel(node).pod.Name, "etc/resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+server.String()+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// TestPodsLeaveTheMeshAsPolicySays: from the object that a user applies to what the kernel drops, by the shipped processes.
func TestPodsLeaveTheMeshAsPolicySays(t *testing.T) {
	b := start(t, Config{
		Nodes: []string{"a", "b"},
		Pods:  []Pod{{Name: "client", Node: "a"}, {Name: "far", Node: "b", Port: port}},
	})
	b.serve("far")
	const excepted, other = 18100, 18101
	outside := b.serveOutside("b", excepted, other)
	b.resolveBy("a", outside)
	to := func(port uint16) string { return netip.AddrPortFrom(outside, port).String() }
	leaves := func(port uint16, role string) error { _, err := b.role("client", role, to(port)); return err }
	eventually := func(what string, holds func() error) {
		t.Helper()
		var err error
		for range 100 {
			if err = holds(); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("%s: %v", what, err)
	}
	both := []string{clientRole, askRole}
	for _, role := range both {
		if err := leaves(other, role); err != nil {
			t.Fatalf("without a policy, %s: %v", role, err)
		}
	}

	last := int32(excepted)
	policy := &v1alpha1.EgressPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "bank"},
		Spec: v1alpha1.EgressPolicySpec{Action: v1alpha1.EgressDeny, Exceptions: []v1alpha1.EgressException{
			{DNSName: "*.bank.example", Ports: []v1alpha1.EgressPort{{Port: last, Protocol: v1alpha1.EgressAny}}},
		}},
	}
	if err := b.api.Put(policy); err != nil {
		t.Fatal(err)
	}
	eventually("the policy is in force", func() error {
		for _, role := range both {
			if leaves(other, role) == nil {
				return fmt.Errorf("%s still leaves", role)
			}
		}
		return nil
	})
	if err := leaves(excepted, clientRole); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("before the name is known: %v, want connection refused", err)
	}
	// Whom the pod asks does not matter: nobody is there.
	eventually("names are resolved", func() error {
		got, err := b.role("client", resolveRole, "192.0.2.53", "api.bank.example")
		if err == nil && got != outside.String() {
			err = fmt.Errorf("the name is %q", got)
		}
		return err
	})
	for _, role := range both {
		if err := leaves(excepted, role); err != nil {
			t.Errorf("excepted by name, %s: %v", role, err)
		}
		if err := leaves(other, role); err == nil {
			t.Errorf("another port, %s: it leaves", role)
		}
	}
	b.answers("client", b.Service("far"))
	b.logged("a", "reason=EgressDenied", "dst.addr="+to(other))

	time.Sleep(2500 * time.Millisecond) // names are on disk
	b.Ztunnel("a").Kill()
	for _, port := range []uint16{excepted, other} {
		if err := leaves(port, clientRole); err == nil {
			t.Errorf("without ztunnel a connection to port %d leaves", port)
		}
	}
	if err := leaves(other, askRole); err == nil {
		t.Error("without ztunnel a datagram leaves")
	}
	b.restart("a", "client")
	for _, role := range both {
		if err := leaves(excepted, role); err != nil {
			t.Errorf("after a restart, %s: %v", role, err)
		}
		if err := leaves(other, role); err == nil {
			t.Errorf("after a restart, another port, %s: it leaves", role)
		}
	}

	if err := b.api.Delete(policy); err != nil {
		t.Fatal(err)
	}
	eventually("the policy is no more", func() error { return errors.Join(leaves(other, clientRole), leaves(other, askRole)) })
}
