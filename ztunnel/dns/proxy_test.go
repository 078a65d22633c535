package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
)

func hosts(m []byte, _ bool) []byte {
	return reply(m, nil, a("shop.example.", "203.0.113.7", 30))
}

// Whatever a resolver of the node says reaches the client byte by byte, but for the identifier: any type, EDNS, options.
func TestMessagesPassUnchanged(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		var sent, received []byte
		s := serve(t, ip, func(m []byte, _ bool) []byte {
			received = m
			sent = reply(m, func(r *dnsmessage.Message) {
				r.AuthenticData, r.Authoritative = true, true
				r.Additionals = append(r.Additionals, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 1232},
					Body:   &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 65001, Data: []byte("local")}}},
				})
			}, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("Shop.Example."), Type: 65280, Class: dnsmessage.ClassINET, TTL: 9},
				Body:   &dnsmessage.UnknownResource{Type: 65280, Data: []byte{1, 2, 3}},
			})
			return sent
		})
		p := newPod(t, nil, s.at)
		for name, way := range map[string]func([]byte) []byte{"udp": p.udp, "tcp": p.tcp} {
			question := ask(t, 0x1234, "Shop.Example.", 65280, 1232)
			answer := way(question)
			if !bytes.Equal(received[2:], question[2:]) {
				t.Errorf("%s, %s: resolver got %x, client sent %x", ip, name, received, question)
			}
			if id(answer) != 0x1234 || !bytes.Equal(answer[2:], sent[2:]) {
				t.Errorf("%s, %s: client got %x, resolver sent %x", ip, name, answer, sent)
			}
		}
	}
}

// A truncated answer passes as such, and the client gets the whole one by TCP, however long it is.
func TestTruncationLeadsToTCP(t *testing.T) {
	s := serve(t, "127.0.0.1", func(m []byte, stream bool) []byte {
		if !stream {
			return reply(m, func(r *dnsmessage.Message) { r.Truncated = true })
		}
		var records []dnsmessage.Resource
		for i := range 2000 {
			records = append(records, a("shop.example.", fmt.Sprintf("203.0.%d.%d", i/256, i%256), 30))
		}
		return reply(m, nil, records...)
	})
	p := newPod(t, nil, s.at)
	question := ask(t, 7, "shop.example.", dnsmessage.TypeA, 0)
	if answer := p.udp(question); flags(answer)&bitTruncated == 0 {
		t.Errorf("by UDP: %x", answer)
	}
	if answer := p.tcp(question); len(answer) < 30000 || flags(answer)&bitTruncated != 0 {
		t.Errorf("by TCP: %d bytes", len(answer))
	}
	if learnt := <-p.learnt; len(learnt.Addresses) != 2000 {
		t.Errorf("learnt %d addresses", len(learnt.Addresses))
	}
	if len(p.learnt) > 0 {
		t.Error("learnt from a truncated answer")
	}
}

// A resolver that sends more than the client said it takes does not get through by UDP.
func TestAnswerThatDoesNotFitIsTruncated(t *testing.T) {
	s := serve(t, "127.0.0.1", func(m []byte, _ bool) []byte {
		return reply(m, nil, slices.Repeat([]dnsmessage.Resource{a("shop.example.", "203.0.113.7", 30)}, 100)...)
	})
	answer := newPod(t, nil, s.at).udp(ask(t, 7, "shop.example.", dnsmessage.TypeA, 0))
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil || !m.Truncated || len(m.Questions) != 1 || len(m.Answers) != 0 || len(answer) > 512 {
		t.Errorf("%v, %v", m, err)
	}
}

// What is no proper question is answered as the specifications want it, or not at all, and never passed on.
func TestWhatIsNotPassedOn(t *testing.T) {
	s := serve(t, "127.0.0.1", hosts)
	p := newPod(t, nil, s.at)
	good := ask(t, 7, "shop.example.", dnsmessage.TypeA, 1232)
	with := func(change func([]byte)) []byte {
		m := bytes.Clone(good)
		change(m)
		return m
	}
	for name, test := range map[string]struct {
		m    []byte
		code dnsmessage.RCode
	}{
		"zone transfer":              {ask(t, 7, "example.", dnsmessage.TypeAXFR, 0), dnsmessage.RCodeRefused},
		"incremental zone transfer":  {ask(t, 7, "example.", typeIXFR, 0), dnsmessage.RCodeRefused},
		"update":                     {with(func(m []byte) { m[2] |= 5 << 3 }), dnsmessage.RCodeNotImplemented},
		"no question":                {with(func(m []byte) { m[5] = 0 }), dnsmessage.RCodeFormatError},
		"two questions":              {with(func(m []byte) { m[5] = 2 }), dnsmessage.RCodeFormatError},
		"compressed name":            {with(func(m []byte) { m[12] = 0xc0 }), dnsmessage.RCodeFormatError},
		"name without end":           {good[:20], dnsmessage.RCodeFormatError},
		"records that are not there": {with(func(m []byte) { m[11] = 9 }), dnsmessage.RCodeFormatError},
		"too long":                   {append(bytes.Clone(good), make([]byte, maxQuestion)...), dnsmessage.RCodeFormatError},
	} {
		answer := p.udp(test.m)
		if len(answer) < headerSize || rcode(answer) != test.code || flags(answer)&bitAnswer == 0 || id(answer) != 7 {
			t.Errorf("%s: %x", name, answer)
		}
	}
	for _, m := range [][]byte{nil, {1}, good[:11], with(func(m []byte) { m[2] |= 0x80 })} {
		p.in <- datagram{m, client, addressed}
	}
	if answer := p.udp(good); rcode(answer) != dnsmessage.RCodeSuccess { // the first to come back
		t.Errorf("%x", answer)
	}
	if n := s.count(); n != 1 {
		t.Errorf("the resolver was asked %d times", n)
	}
	conn := p.dial()
	if err := writeMessage(conn, []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn); err != io.EOF {
		t.Errorf("a stream of something else: %v", err)
	}
}

// The next resolver is asked where one is not there or does not know; what all say is passed on.
func TestResolversAreAskedInTurn(t *testing.T) {
	refusing := serve(t, "127.0.0.1", func(m []byte, _ bool) []byte {
		return reply(m, func(r *dnsmessage.Message) { r.RCode = dnsmessage.RCodeRefused })
	})
	lying := serve(t, "127.0.0.1", func(m []byte, _ bool) []byte { // answers another question
		return reply(ask(t, id(m), "other.example.", dnsmessage.TypeA, 0), nil, a("other.example.", "203.0.113.66", 30))
	})
	good := serve(t, "127.0.0.1", hosts)
	gone := netip.MustParseAddrPort("127.0.0.1:1")
	question := ask(t, 7, "shop.example.", dnsmessage.TypeA, 0)
	p := newPod(t, nil, gone, refusing.at, good.at)
	for name, way := range map[string]func([]byte) []byte{"udp": p.udp, "tcp": p.tcp} {
		if answer := way(question); rcode(answer) != dnsmessage.RCodeSuccess {
			t.Errorf("%s: %x", name, answer)
		}
		if learnt := <-p.learnt; learnt.Name != "shop.example" {
			t.Errorf("learnt %v", learnt)
		}
	}
	if answer := newPod(t, nil, gone, refusing.at).udp(question); rcode(answer) != dnsmessage.RCodeRefused {
		t.Errorf("all refuse: %x", answer)
	}
	if answer := newPod(t, nil, lying.at, good.at).tcp(question); rcode(answer) != dnsmessage.RCodeSuccess {
		t.Errorf("beside one that lies: %x", answer)
	}
	for name, servers := range map[string][]netip.AddrPort{"none": nil, "gone": {gone}} {
		p := newPod(t, nil, servers...)
		if answer := p.udp(question); rcode(answer) != dnsmessage.RCodeServerFailure || !bytes.Equal(answer[headerSize:], question[headerSize:]) {
			t.Errorf("%s: %x", name, answer)
		}
	}
}

// Only an answer to the very question counts, whatever comes before it.
func TestForgedDatagramsAreIgnored(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		b := make([]byte, maxMessage)
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		m := b[:n]
		evil := a("shop.example.", "203.0.113.66", 30)
		for _, forged := range [][]byte{
			reply(ask(t, id(m)+1, "shop.example.", dnsmessage.TypeA, 0), nil, evil),
			reply(ask(t, id(m), "other.example.", dnsmessage.TypeA, 0), nil, evil),
			reply(ask(t, id(m), "shop.example.", dnsmessage.TypeAAAA, 0), nil, evil),
			m,
			{},
			hosts(m, false),
		} {
			conn.WriteTo(forged, from)
		}
	}()
	p := newPod(t, nil, conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if answer := p.udp(ask(t, 7, "shop.example.", dnsmessage.TypeA, 0)); rcode(answer) != dnsmessage.RCodeSuccess {
		t.Errorf("%x", answer)
	}
	if learnt := <-p.learnt; learnt.Addresses[0].IP != netip.MustParseAddr("203.0.113.7") || len(p.learnt) > 0 {
		t.Errorf("learnt %v", learnt)
	}
}

// The pod that is a resolver itself gets its answers from whom it asks, and teaches nothing.
func TestResolverInTheMeshIsNotAskedByItself(t *testing.T) {
	loop := serve(t, "127.0.0.1", hosts)
	up := serve(t, "127.0.0.1", hosts)
	p := newPod(t, func(c *Config) {
		c.Direct = func(server netip.AddrPort) (bool, error) {
			if server == addressed {
				return true, errors.New("may not go there")
			}
			return server == up.at, nil
		}
	}, loop.at)
	p.in <- datagram{ask(t, 7, "shop.example.", dnsmessage.TypeA, 0), client, up.at}
	if d := <-p.out; rcode(d.b) != dnsmessage.RCodeSuccess || up.count() != 1 || loop.count() != 0 || len(p.learnt) != 0 {
		t.Errorf("%x; upstream %d, itself %d, learnt %d", d.b, up.count(), loop.count(), len(p.learnt))
	}
	if answer := p.udp(ask(t, 7, "shop.example.", dnsmessage.TypeA, 0)); rcode(answer) != dnsmessage.RCodeServerFailure || up.count() != 1 || loop.count() != 0 {
		t.Errorf("to a server that it may not ask: %x; upstream %d, itself %d", answer, up.count(), loop.count())
	}
}

// Questions of one stream are answered as they come in, not one after the other.
func TestStreamsArePipelined(t *testing.T) {
	hold := make(chan struct{})
	s := serve(t, "127.0.0.1", func(m []byte, _ bool) []byte {
		if strings.Contains(string(m), "slow") {
			<-hold
		}
		return reply(m, nil)
	})
	conn := newPod(t, nil, s.at).dial()
	for i, name := range []string{"slow.example.", "fast.example."} {
		if err := writeMessage(conn, ask(t, uint16(i), name, dnsmessage.TypeA, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if answer, err := readMessage(conn); err != nil || id(answer) != 1 {
		t.Errorf("first answer %x, %v", answer, err)
	}
	close(hold)
	if answer, err := readMessage(conn); err != nil || id(answer) != 0 {
		t.Errorf("second answer %x, %v", answer, err)
	}
}

// A pod that opens hundreds of connections at once asks more than is asked about at a time: all of it is answered.
func TestBurstsWait(t *testing.T) {
	var mu sync.Mutex
	asking, most := 0, 0
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		asking += n
		most = max(most, asking)
	}
	r := NewResolver(func() []netip.AddrPort { return []netip.AddrPort{addressed} }, NewMetrics(prometheus.NewRegistry()))
	r.ask = func(_ context.Context, q question, _ netip.AddrPort, _ bool) ([]byte, error) {
		count(1)
		defer count(-1)
		time.Sleep(20 * time.Millisecond)
		return hosts(q.message, false), nil
	}
	p := newPod(t, func(c *Config) {
		c.Resolver = r
		c.Learn = func(Answer) {}
	})
	const burst = maxInFlight + maxWaiting
	for i := range burst {
		p.in <- datagram{ask(t, uint16(i), "shop.example.", dnsmessage.TypeA, 0), client, addressed}
	}
	for range burst {
		select {
		case d := <-p.out:
			if rcode(d.b) != dnsmessage.RCodeSuccess {
				t.Fatalf("%x", d.b)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("some are not answered")
		}
	}
	if most > maxInFlight {
		t.Errorf("%d questions were in flight, want at most %d", most, maxInFlight)
	}
}

// What is beyond the limits is told so at once, and other pods' questions are answered.
func TestQuestionsInFlightAreBounded(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	slow := serve(t, "127.0.0.1", func(m []byte, _ bool) []byte { <-hold; return nil })
	p := newPod(t, nil, slow.at)
	question := ask(t, 7, "shop.example.", dnsmessage.TypeA, 0)
	began := time.Now()
	for range maxInFlight + maxWaiting + 1 {
		p.in <- datagram{question, client, addressed}
	}
	if d := <-p.out; rcode(d.b) != dnsmessage.RCodeServerFailure || time.Since(began) > tryTimeout {
		t.Errorf("%x after %v", d.b, time.Since(began))
	}
	if answer := newPod(t, nil, serve(t, "127.0.0.1", hosts).at).udp(question); rcode(answer) != dnsmessage.RCodeSuccess {
		t.Errorf("another pod: %x", answer)
	}
}
