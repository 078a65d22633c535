package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
)

// A server is a DNS server that answers by a function; nil is silence.
type server struct {
	at     netip.AddrPort
	answer func(m []byte, stream bool) []byte

	mu    sync.Mutex
	asked int
}

// listenBoth finds a port that is free for UDP and for TCP: one that is for the one may be somebody's of the other.
func listenBoth(t testing.TB, ip string) (net.PacketConn, net.Listener) {
	t.Helper()
	for tries := 0; ; tries++ {
		datagrams, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.Listen("tcp", datagrams.LocalAddr().String())
		if err == nil {
			return datagrams, streams
		}
		datagrams.Close()
		if tries == 20 {
			t.Fatal(err)
		}
	}
}

// serve runs a DNS server on a loopback address until the test ends.
func serve(t testing.TB, ip string, answer func(m []byte, stream bool) []byte) *server {
	t.Helper()
	s := &server{answer: answer}
	datagrams, streams := listenBoth(t, ip)
	s.at = datagrams.LocalAddr().(*net.UDPAddr).AddrPort()
	t.Cleanup(func() { datagrams.Close(); streams.Close() })
	go func() {
		b := make([]byte, maxMessage)
		for {
			n, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := s.hear(b[:n], false); answer != nil {
				datagrams.WriteTo(answer, from)
			}
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
				for {
					m, err := readMessage(conn)
					if err != nil {
						return
					}
					if answer := s.hear(m, true); answer != nil {
						writeMessage(conn, answer)
					}
				}
			}()
		}
	}()
	return s
}

func (s *server) hear(m []byte, stream bool) []byte {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return s.answer(append([]byte(nil), m...), stream)
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// ask is a question as a client sends it.
func ask(t testing.TB, id uint16, name string, kind dnsmessage.Type, size int) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	b.StartQuestions()
	if err := b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}); err != nil {
		t.Fatal(err)
	}
	if size > 0 {
		b.StartAdditionals()
		var header dnsmessage.ResourceHeader
		header.SetEDNS0(size, dnsmessage.RCodeSuccess, true)
		if err := b.OPTResource(header, dnsmessage.OPTResource{}); err != nil {
			t.Fatal(err)
		}
	}
	m, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// reply is a server's answer to the question m: records after a header that says success, or whatever change does.
func reply(m []byte, change func(*dnsmessage.Message), records ...dnsmessage.Resource) []byte {
	var asked dnsmessage.Message
	if err := asked.Unpack(m); err != nil {
		panic(err)
	}
	asked.Response, asked.RecursionAvailable, asked.Answers = true, true, records
	if change != nil {
		change(&asked)
	}
	packed, err := asked.Pack()
	if err != nil {
		panic(err)
	}
	return packed
}

func a(name, ip string, ttl uint32) dnsmessage.Resource {
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}}
	if addr := netip.MustParseAddr(ip); addr.Is4() {
		r.Header.Type, r.Body = dnsmessage.TypeA, &dnsmessage.AResource{A: addr.As4()}
	} else {
		r.Header.Type, r.Body = dnsmessage.TypeAAAA, &dnsmessage.AAAAResource{AAAA: addr.As16()}
	}
	return r
}

func cname(name, target string, ttl uint32) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeCNAME, Class: dnsmessage.ClassINET, TTL: ttl},
		Body:   &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)},
	}
}

// A pod asks by datagrams that a test puts in and takes out, and by streams.
type pod struct {
	t        testing.TB
	in, out  chan datagram
	closed   chan struct{}
	close    sync.Once
	streams  net.Addr
	proxy    *Proxy
	learnt   chan Answer
	registry *prometheus.Registry
}

type datagram struct {
	b              []byte
	client, server netip.AddrPort
}

func (p *pod) Read(b []byte) (int, netip.AddrPort, netip.AddrPort, error) {
	select {
	case d := <-p.in:
		return copy(b, d.b), d.client, d.server, nil
	case <-p.closed:
		return 0, netip.AddrPort{}, netip.AddrPort{}, net.ErrClosed
	}
}

func (p *pod) Write(b []byte, client, server netip.AddrPort) error {
	p.out <- datagram{append([]byte(nil), b...), client, server}
	return nil
}

func (p *pod) Close() error {
	p.close.Do(func() { close(p.closed) })
	return nil
}

// newPod runs a proxy for a pod, with these resolvers.
func newPod(t testing.TB, change func(*Config), servers ...netip.AddrPort) *pod {
	t.Helper()
	p := &pod{
		t: t, in: make(chan datagram), out: make(chan datagram, 1000), closed: make(chan struct{}),
		learnt: make(chan Answer, 100), registry: prometheus.NewRegistry(),
	}
	streams, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	p.streams = streams.Addr()
	metrics := NewMetrics(p.registry)
	cfg := Config{
		Datagrams: p, Streams: streams,
		Resolver: NewResolver(func() []netip.AddrPort { return servers }, metrics),
		Learn:    func(a Answer) { p.learnt <- a },
		Direct:   func(netip.AddrPort) (bool, error) { return false, nil },
		Metrics:  metrics, Logger: slog.New(slog.DiscardHandler), DrainTimeout: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	p.proxy = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		streams.Close()
	})
	return p
}

var (
	client    = netip.MustParseAddrPort("10.0.0.1:40000")
	addressed = netip.MustParseAddrPort("192.0.2.53:53") // a server that nobody can reach
)

// udp asks by datagram and returns the answer.
func (p *pod) udp(m []byte) []byte {
	p.t.Helper()
	p.in <- datagram{m, client, addressed}
	select {
	case d := <-p.out:
		if d.client != client || d.server != addressed {
			p.t.Fatalf("answered %s for %s", d.client, d.server)
		}
		return d.b
	case <-time.After(10 * time.Second):
		p.t.Fatal("no answer")
	}
	return nil
}

func (p *pod) dial() net.Conn {
	p.t.Helper()
	conn, err := net.Dial(p.streams.Network(), p.streams.String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// tcp asks by a stream of its own.
func (p *pod) tcp(m []byte) []byte {
	p.t.Helper()
	conn := p.dial()
	if err := writeMessage(conn, m); err != nil {
		p.t.Fatal(err)
	}
	answer, err := readMessage(conn)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer
}
