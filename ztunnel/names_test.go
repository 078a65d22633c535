package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// answerNames answers every question for addresses with one, whatever the name.
func answerNames(m []byte, ip4, ip6 netip.Addr) []byte {
	var asked dnsmessage.Message
	if asked.Unpack(m) != nil || len(asked.Questions) != 1 {
		return nil
	}
	q := asked.Questions[0]
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	asked.Response, asked.Additionals = true, nil
	switch q.Type {
	case dnsmessage.TypeA:
		asked.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: ip4.As4()}}}
	case dnsmessage.TypeAAAA:
		asked.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: ip6.As16()}}}
	}
	answer, err := asked.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// serveNames runs a DNS server by both transports until the test ends: for each question, answer says what.
func serveNames(t testing.TB, datagrams net.PacketConn, streams net.Listener, answer func([]byte) []byte) {
	t.Helper()
	t.Cleanup(func() { datagrams.Close(); streams.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			datagrams.WriteTo(answer(b[:n]), from)
		}
	}()
	go func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if m, err := readFramed(conn); err == nil {
					conn.Write(frameNames(answer(m)))
				}
			}()
		}
	}()
}

func frameNames(m []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

// serveNodesResolver makes the bed's node have a resolver, which answers all names with these addresses.
func (b *bed) serveNodesResolver(ip4, ip6 netip.Addr) {
	b.t.Helper()
	lo, err := netlink.LinkByName("lo") // of the test's own namespace, where ztunnel is
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	at := datagrams.LocalAddr().(*net.UDPAddr).AddrPort()
	streams, err := net.Listen("tcp", at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.resolvers = []netip.AddrPort{at}
	serveNames(b.t, datagrams, streams, func(m []byte) []byte { return answerNames(m, ip4, ip6) })
}

// serveLies runs a DNS server in a pod, on its port 53, that answers all names with its own addresses.
func serveLies(t testing.TB, pod *netnstest.Pod) {
	t.Helper()
	var datagrams net.PacketConn
	var streams net.Listener
	if err := pod.Do(func() (err error) {
		if datagrams, err = net.ListenPacket("udp", ":53"); err != nil {
			return err
		}
		streams, err = net.Listen("tcp", ":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	serveNames(t, datagrams, streams, func(m []byte) []byte { return answerNames(m, pod.IPv4, pod.IPv6) })
}

// lookUp asks a DNS server from a pod, by a transport, for a name's address of the server's family.
func lookUp(t testing.TB, pod *netnstest.Pod, transport string, server netip.Addr, name string) (found netip.Addr, err error) {
	t.Helper()
	kind := dnsmessage.TypeAAAA
	if server.Is4() {
		kind = dnsmessage.TypeA
	}
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	m, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	err = pod.Do(func() error {
		conn, err := net.Dial(transport, netip.AddrPortFrom(server, 53).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		answer := make([]byte, 4096)
		if transport == "tcp" {
			if _, err := conn.Write(frameNames(m)); err != nil {
				return err
			}
			answer, err = readFramed(conn)
		} else {
			if _, err := conn.Write(m); err != nil {
				return err
			}
			var n int
			n, err = conn.Read(answer)
			answer = answer[:n]
		}
		if err != nil {
			return err
		}
		var got dnsmessage.Message
		if err := got.Unpack(answer); err != nil {
			return err
		}
		if got.RCode != dnsmessage.RCodeSuccess || len(got.Answers) != 1 {
			return errors.New(got.RCode.String())
		}
		switch body := got.Answers[0].Body.(type) {
		case *dnsmessage.AResource:
			found = netip.AddrFrom4(body.A)
		case *dnsmessage.AAAAResource:
			found = netip.AddrFrom16(body.AAAA)
		}
		return nil
	})
	return found, err
}

var (
	true4 = netip.MustParseAddr("203.0.113.7")
	true6 = netip.MustParseAddr("2001:db8::7")
)

// Whatever server a pod asks, the node's resolvers answer, and that server hears nothing.
func TestNamesAreAskedOfTheNodesResolvers(t *testing.T) {
	b := newBed(t)
	web, liar := b.network.Node("a").Pod("web"), b.network.Node("b").Pod("liar")
	serveLies(t, liar)
	b.serveNodesResolver(true4, true6)
	control := map[netip.Addr]netip.Addr{liar.IPv4: liar.IPv4, liar.IPv6: liar.IPv6}
	captured := map[netip.Addr]netip.Addr{liar.IPv4: true4, liar.IPv6: true6}
	expect := func(when string, want map[netip.Addr]netip.Addr) {
		t.Helper()
		for _, transport := range []string{"udp", "tcp"} {
			for server, address := range want {
				if got, err := lookUp(t, web, transport, server, "api.example."); err != nil || got != address {
					t.Errorf("%s, %s from %s: %s, %v, want %s", when, transport, server, got, err, address)
				}
			}
		}
	}
	expect("not captured", control)
	running := b.capture(web)
	expect("captured", captured)
	b.resolvers = nil
	for _, transport := range []string{"udp", "tcp"} {
		if got, err := lookUp(t, web, transport, liar.IPv4, "api.example."); err == nil || err.Error() != dnsmessage.RCodeServerFailure.String() {
			t.Errorf("without resolvers, %s: %s, %v", transport, got, err)
		}
	}
	if err := running.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("released", control)
}

// A pod that is a resolver's is one by its address, or by a service's that leads to it.
func TestResolversInTheMeshAreKnown(t *testing.T) {
	b := newBed(t)
	vip := netip.MustParseAddr("10.96.0.10")
	b.resolvers = []netip.AddrPort{netip.AddrPortFrom(vip, 53)}
	service := &api.Service{
		Name: "kube-dns", Namespace: "kube-system", Hostname: "kube-dns.kube-system.svc.cluster.local",
		Addresses: workloadtest.NetworkAddrs(vip.String()), Ports: []*api.Port{{ServicePort: 53, TargetPort: 53}},
	}
	server := &api.Workload{
		Uid: workload.PodUID("Kubernetes", "kube-system", "coredns"), Name: "coredns", Namespace: "kube-system", ClusterId: "Kubernetes",
		Addresses: workloadtest.Addrs("10.1.0.77"),
		Services:  map[string]*api.PortList{workload.ServiceKey(service.Namespace, service.Hostname): {Ports: service.Ports}},
	}
	workloadtest.Apply(t, b.store, service, server)
	behind, ok := b.store.Snapshot().WorkloadByUID(server.Uid)
	if !ok || !b.isResolver(behind) {
		t.Errorf("a pod behind the resolvers' service: known %v", ok)
	}
	if !b.isResolver(&workload.Workload{UID: "itself", Addresses: []netip.Addr{vip}}) {
		t.Error("a pod with a resolver's address")
	}
	if b.isResolver(&workload.Workload{UID: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.78")}}) {
		t.Error("any other pod")
	}
}
