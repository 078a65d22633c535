//go:build envoy

package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"text/template"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// envoy is Envoy, with a tunnel's server, a tunnel's client for each application,
// and what it needs on either side.
type envoy struct {
	Tunnel, Server, Admin int
	// Apps are the applications behind Envoy's server, Doors where its client is
	// asked for those behind ours.
	Apps, Doors   []door
	Cert, Key, CA string
}

// door is where one listens that is asked for by another port.
type door struct{ Asked, Port int }

func (e *envoy) door(asked int) string {
	for _, d := range e.Doors {
		if d.Asked == asked {
			return fmt.Sprintf("127.0.0.1:%d", d.Port)
		}
	}
	panic("no such door")
}

// startEnvoy starts it with apps behind it, and server at the end of its tunnel.
func startEnvoy(t *testing.T, p *pki, apps *apps, server *net.TCPAddr) *envoy {
	t.Helper()
	e := &envoy{Tunnel: freeAddr(t).Port, Admin: freeAddr(t).Port, Server: server.Port, Cert: p.cert, Key: p.key, CA: p.ca}
	for _, port := range []int{echoPort, greetPort, resetPort, holdPort} {
		e.Apps = append(e.Apps, door{port, listenApp(t, apps, port)})
		e.Doors = append(e.Doors, door{port, freeAddr(t).Port})
	}
	e.Apps = append(e.Apps, door{refusedPort, freeAddr(t).Port}) // nobody listens there
	e.Doors = append(e.Doors, door{refusedPort, freeAddr(t).Port})
	config := filepath.Join(t.TempDir(), "envoy.yaml")
	f, err := os.Create(config)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := template.Must(template.ParseFiles("testdata/envoy.yaml")).Execute(f, e); err != nil {
		t.Fatal(err)
	}
	start(t, fmt.Sprintf("127.0.0.1:%d", e.Tunnel), envoyCommand(t), "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	return e
}

// envoyCommand is where make test-envoy puts it.
func envoyCommand(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("AMBIT_CACHE")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, ".cache", "ambit")
	}
	found, err := filepath.Glob(filepath.Join(cache, "envoy", "lib", "python3*", "site-packages", "envoy", "_bin", "envoy"))
	if err != nil || len(found) != 1 {
		t.Fatalf("Envoy is not installed below %s: make test-envoy installs it", cache)
	}
	return found[0]
}

// listenApp runs the application at port, on another port.
func listenApp(t *testing.T, apps *apps, port int) int {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				apps.run(port, c, func() { abort(c) })
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		running.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestEnvoyIsTheServer: Envoy resets a stream whose application closes its half
// first, and closes in order the application's connection of one that we reset.
func TestEnvoyIsTheServer(t *testing.T) {
	p, apps := newPKI(t), newApps()
	e := startEnvoy(t, p, apps, freeAddr(t))
	client := dial(t, p, fmt.Sprintf("127.0.0.1:%d", e.Tunnel))
	open := func(t *testing.T, port int) hbone.Stream {
		t.Helper()
		st, err := client.Open(t.Context(), hbone.Request{Authority: target(port)})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}

	t.Run("echo of 8 MiB on eight streams, with half-close", func(t *testing.T) {
		together(t, 8, func(i int) error {
			st, err := client.Open(t.Context(), hbone.Request{Authority: target(echoPort)})
			if err != nil {
				return err
			}
			return echoes(st, byte(i), bulk)
		})
	})
	t.Run("the server speaks first and ends", func(t *testing.T) {
		st := open(t, greetPort)
		defer st.Close()
		if b, err := io.ReadAll(st); err != nil || string(b) != greeting {
			t.Errorf("%q, %v", b, err)
		}
		within(t, "the end of the application's connection", apps.read)
	})
	t.Run("refusal", func(t *testing.T) {
		_, err := client.Open(t.Context(), hbone.Request{Authority: target(refusedPort)})
		if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Code != 503 {
			t.Error(err)
		}
	})
	t.Run("the application's reset becomes ours", func(t *testing.T) {
		st := open(t, resetPort)
		defer st.Close()
		io.WriteString(st, "12345")
		st.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := io.ReadAll(st)
		reset := (*hbone.ResetError)(nil)
		if !errors.As(err, &reset) || !reset.Remote {
			t.Errorf("it arrives as %v", err)
		}
	})
	t.Run("our reset ends the application's connection", func(t *testing.T) {
		st := open(t, holdPort)
		io.WriteString(st, "half a mess")
		st.Reset()
		within(t, "the end", apps.held)
	})
	t.Run("drain", func(t *testing.T) {
		st := open(t, echoPort)
		e.post(t, "/drain_listeners?graceful")
		eventually(t, "GOAWAY", func() bool {
			// Envoy sends it along with an answer.
			if other, err := client.Open(t.Context(), hbone.Request{Authority: target(echoPort)}); err == nil {
				echoes(other, 1, 1)
			}
			return !client.CanOpen()
		})
		if err := echoes(st, 1, bulk); err != nil {
			t.Errorf("a stream that was open: %v", err)
		}
		within(t, "the tunnel's end", client.Done())
		if err := client.Err(); err != nil {
			t.Error(err)
		}
	})
}

// post asks Envoy's administration.
func (e *envoy) post(t *testing.T, path string) {
	t.Helper()
	response, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d%s", e.Admin, path), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		t.Fatal(response.Status)
	}
}

// TestEnvoyIsTheClient: Envoy closes in order its client's connection of a stream
// that we reset.
func TestEnvoyIsTheClient(t *testing.T) {
	p, apps := newPKI(t), newApps()
	server := listen(t, p, apps)
	e := startEnvoy(t, p, apps, server.TCPAddr)
	open := func(port int) *net.TCPConn {
		c, err := net.Dial("tcp", e.door(port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c.(*net.TCPConn)
	}

	t.Run("echo of 8 MiB on eight streams, with half-close", func(t *testing.T) {
		together(t, 8, func(i int) error { return echoes(open(echoPort), byte(i), bulk) })
	})
	t.Run("the server speaks first and closes its half first", func(t *testing.T) {
		c := open(greetPort)
		defer c.Close()
		if b, err := io.ReadAll(c); err != nil || string(b) != greeting {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := c.Write(make([]byte, bulk)); err != nil {
			t.Errorf("write after the server's EOF: %v", err)
		}
		c.CloseWrite()
		if got := within(t, "the stream's EOF", apps.read); got.err != nil || got.n != bulk {
			t.Errorf("the application read %+v", got)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		c := open(refusedPort)
		defer c.Close()
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("our reset ends the client's connection", func(t *testing.T) {
		c := open(resetPort)
		defer c.Close()
		io.WriteString(c, "12345")
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("the client's reset becomes ours", func(t *testing.T) {
		c := open(holdPort)
		io.WriteString(c, "half a mess")
		time.Sleep(50 * time.Millisecond)
		abort(c)
		got := within(t, "the end", apps.held)
		reset := (*hbone.ResetError)(nil)
		if !errors.As(got.err, &reset) || reset.Code == http2.ErrCodeNo {
			t.Errorf("it ends with %v", got.err)
		}
	})
	t.Run("drain", func(t *testing.T) {
		c := open(echoPort)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		server.drain()
		eventually(t, "a stream in another tunnel", func() bool {
			return echoes(open(echoPort), 1, 1<<20) == nil && server.tunnels.Load() > 1
		})
		if err := echoes(c, 2, bulk); err != nil {
			t.Errorf("a stream that was open: %v", err)
		}
		if err := within(t, "the end of the tunnel", server.ended); err != nil {
			t.Error(err)
		}
	})
}
