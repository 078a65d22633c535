package h2spec

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/summerwind/h2spec/client"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/spec"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// clientCases is how many the suite has.
const clientCases = 57

// TestClient runs every case of the suite for clients: the suite serves one
// connection, on which our client asks for a stream and reads it to its end.
func TestClient(t *testing.T) {
	var trials []trial
	for name, c := range casesForClients {
		settings := sized(settings("127.0.0.1", 0), name)
		trials = append(trials, trial{name, unfitClient[name], func() error { return runForClient(t, c, settings) }})
	}
	if len(trials) != clientCases {
		t.Errorf("%d cases, want %d", len(trials), clientCases)
	}
	judge(t, trials)
	mustBeCases(t, trials, unfitClient)
}

func runForClient(t *testing.T, c *spec.ClientTestCase, settings config.Config) error {
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsConfig(t))
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- ask(ctx, l.Addr().(*net.TCPAddr)) }()

	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	suite, err := spec.Accept(&settings, conn)
	if err != nil {
		return err
	}
	result := c.Run(&settings, suite)
	cancel()
	conn.Close()
	if err := <-asked; err != nil {
		return err
	}
	return result
}

// ask opens a tunnel and a stream. Whatever becomes of them is the suite's to judge.
func ask(ctx context.Context, addr *net.TCPAddr) error {
	raw, err := net.DialTCP("tcp", nil, addr)
	if err != nil {
		return err
	}
	wire, err := hbone.NewWire(raw)
	if err != nil {
		return err
	}
	conn := tls.Client(wire, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	tunnel, err := hbone.NewClient(conn, hbone.Options{})
	if err != nil {
		return err
	}
	defer tunnel.Close()
	st, err := tunnel.Open(ctx, hbone.Request{Authority: netip.MustParseAddrPort("192.0.2.1:80")})
	if err == nil {
		stop := context.AfterFunc(ctx, func() { st.Close() })
		defer stop()
		io.Copy(io.Discard, st)
		st.Close()
	}
	select {
	case <-tunnel.Done():
	case <-ctx.Done():
	}
	return nil
}

// casesForClients are those of the suite, by the names that it gives them.
func casesForClients(yield func(string, *spec.ClientTestCase) bool) {
	casesForClientsOf(client.Spec(), yield)
}

func casesForClientsOf(g *spec.ClientTestGroup, yield func(string, *spec.ClientTestCase) bool) bool {
	for i, c := range g.Tests {
		if !yield(fmt.Sprintf("%s/%d", g.ID(), i+1), c) {
			return false
		}
	}
	for _, sub := range g.Groups {
		if !casesForClientsOf(sub, yield) {
			return false
		}
	}
	return true
}
