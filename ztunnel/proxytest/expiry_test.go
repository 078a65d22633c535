package proxytest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// short is the life of a certificate that a test sees the end of, which is a second
// sooner at most: certificates count whole ones.
const short = 2 * time.Second

// A client's tunnel ends when its certificate has, and the tolerance is over; a
// second one, with another certificate, keeps the first alive as well; somebody
// else's, or one from elsewhere, does not.
func TestLiveTunnelsOfExpiredClientsEnd(t *testing.T) {
	m := New(t)
	server := m.Pod("server")
	server.StartInbound()
	echoing(server)
	open := func(i *intruder, life time.Duration) (ended chan error) {
		t.Helper()
		i.config.Certificates = []tls.Certificate{m.CA.Issue(i.ID, life)}
		client, err := i.tunnel(server)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := asks(client, server)
		if err != nil {
			t.Fatal(err)
		}
		ended = make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, stream)
			ended <- err
		}()
		return ended
	}
	lapsed, renewed, stays := m.intruder("lapsed"), m.intruder("renewed"), m.intruder("stays")
	began := time.Now()
	lapsedEnded := open(lapsed, short)
	renewedEnded := open(renewed, short)
	open(renewed, time.Hour)
	staysEnded := open(stays, time.Hour)
	// The same identity from another address is another's word.
	elsewhere := m.intruder("elsewhere")
	elsewhere.ID = lapsed.ID
	open(elsewhere, time.Hour)

	select {
	case <-lapsedEnded:
		if took := time.Since(began); took < short-time.Second {
			t.Errorf("ended after %s, while the certificate was good", took)
		}
	case <-time.After(short + Tolerance + 2*time.Second):
		t.Error("the tunnel goes on though its certificate has ended")
	}
	time.Sleep(time.Second)
	for name, ended := range map[string]chan error{"shown another certificate": renewedEnded, "a good one": staysEnded} {
		select {
		case err := <-ended:
			t.Errorf("who has %s is cut: %v", name, err)
		default:
		}
	}
	m.await("the record", func() bool { return m.metric("ambit_connection_ends_total", "reason", "Expired") == 1 })
	if n := m.counted("Expired"); n != 1 {
		t.Errorf("%v tunnels are counted as expired, want 1", n)
	}
}

// What is connected through a server whose certificate has ended is reset, with the
// reason, and nothing is connected there any more.
func TestLiveTunnelsToExpiredServersEnd(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	serveHTTP2Until(t, m, server, short, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("hi"))
		http.NewResponseController(w).Flush()
		io.Copy(w, r.Body)
	})
	conn := client.Connect(server.Addr)
	hear(t, conn, "hi")
	began := time.Now()
	hearReset(t, conn)
	if took := time.Since(began); took > short+Tolerance+time.Second {
		t.Errorf("cut after %s", took)
	}
	want(t, m.ofDirection("outbound"), map[string]any{"reason": "Expired"})
	client.Refused(server.Addr)
}

// Both ends renew their certificates in time: what is connected lives on past the end
// of those that its tunnel began with. Then nobody signs any more, and it ends with
// the last ones.
func TestConnectionsOutliveCertificatesThatAreRenewed(t *testing.T) {
	m := New(t)
	const life = 8 * time.Second // renewed after 4.5 to 6.1 s, proven after 6, 7
	m.CA.TTL = life
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	conn := client.Connect(server.Addr)
	began := time.Now()
	for time.Since(began) < life+3*time.Second {
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		say(t, conn, "x")
		hear(t, conn, "x")
		time.Sleep(100 * time.Millisecond)
	}
	m.SetSign(func(context.Context, spiffe.ID, []byte) ([]string, error) { return nil, errors.New("nobody signs") })
	conn.SetDeadline(time.Now().Add(2 * life))
	hearReset(t, conn)
	m.await("the reason", func() bool { return m.metric("ambit_connection_ends_total", "reason", "Expired") > 0 })
}

// A clock that is set past the end of all certificates ends what stands within
// seconds, though no timer has run out; set back, all is well again.
func TestClockThatIsSetPastTheEnd(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	conn := client.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	m.SetClock(20 * time.Hour)
	time.Sleep(3 * time.Second)
	say(t, conn, "y") // their certificates are good for 24
	hear(t, conn, "y")
	m.SetSign(func(context.Context, spiffe.ID, []byte) ([]string, error) { return nil, errors.New("nobody signs") })
	m.SetClock(49 * time.Hour)
	began := time.Now()
	conn.SetDeadline(began.Add(10 * time.Second))
	hearReset(t, conn)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("cut after %s", took)
	}
	m.SetClock(0)
	m.SetSign(nil)
	var again *net.TCPConn
	for deadline := time.Now().Add(10 * time.Second); ; {
		again = client.Connect(server.Addr)
		again.Write([]byte("z"))
		if _, err := io.ReadFull(again, make([]byte, 1)); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("nothing is connected once the clock is right: %v", err)
		}
		again.Close()
	}
}

// A certificate that comes late holds new connections, and then carries them,
// whichever side it is of.
func TestConnectionsWaitForALateCertificate(t *testing.T) {
	for _, late := range []string{"client", "server"} {
		t.Run(late, func(t *testing.T) {
			m := New(t)
			come := make(chan struct{})
			m.SetSign(func(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
				if id.ServiceAccount == late {
					select {
					case <-come:
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}
				return m.CA.Fetch(ctx, id, csrPEM)
			})
			client, server := m.Pod("client").Start(), m.Pod("server").Start()
			echoing(server)
			h := client.hold(client.taker(), nextPort(), server.Addr)
			select {
			case a := <-h.answered:
				t.Fatalf("answered %+v without a certificate", a)
			case <-time.After(1500 * time.Millisecond):
			}
			close(come)
			if a := <-h.answered; !a.passed {
				t.Fatalf("answered %+v once the certificate has come", a)
			}
			conn := client.goOn(t, h)
			say(t, conn, "x")
			hear(t, conn, "x")
		})
	}
}

// They do not wait for ever: after ten seconds they are refused, with the reason.
func TestConnectionsDoNotWaitForeverForACertificate(t *testing.T) {
	m := New(t)
	m.SetSign(func(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
		if id.ServiceAccount == "certain" {
			return m.CA.Fetch(ctx, id, csrPEM)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	certain, without := m.Pod("certain").Start(), m.Pod("without").Start()
	echoing(certain)
	echoing(without)
	began := time.Now()
	from, to := without.hold(without.taker(), nextPort(), certain.Addr), certain.hold(certain.taker(), nextPort(), without.Addr)
	for name, h := range map[string]*heldConn{"its own": from, "its peer's": to} {
		select {
		case a := <-h.answered:
			if a.passed || a.refused == 0 {
				t.Errorf("without %s: answered %+v", name, a)
			}
		case <-time.After(15*time.Second - time.Since(began)):
			t.Errorf("without %s it is still held after %s", name, time.Since(began))
		}
	}
	if took := time.Since(began); took < 8*time.Second {
		t.Errorf("refused after %s already", took)
	}
	m.await("the reason at the client", func() bool {
		return m.metric("ambit_connection_ends_total", "reason", "IdentityFailed") >= 1
	})
	m.await("the reason at the server", func() bool { return m.counted("IdentityFailed") >= 1 })
}
