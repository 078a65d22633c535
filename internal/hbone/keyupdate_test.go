package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// TestKeyUpdate: a peer that changes its keys, and asks for ours to change (RFC
// 8446 section 4.6.3), breaks no stream and has its answer at once, though nothing
// else is to be sent. The peer is OpenSSL: crypto/tls begins no update.
func TestKeyUpdate(t *testing.T) {
	p := startOpenSSL(t)
	p.echoes(t, 100)
	for i := range 5 {
		p.updateKeys(t, "k")
		p.echoes(t, 100)
		p.updateKeys(t, "K")
		p.logged(t, "<<< ", i+1)
		p.echoes(t, 32<<10)
	}
	p.WriteData(1, true, nil)
	if rest, err := io.ReadAll(p.echoed); len(rest) > 0 || err != nil {
		t.Errorf("%d bytes before the end, %v", len(rest), err)
	}
}

// TestKeyUpdateHoldsNothingUp: what comes together with it is served at once.
func TestKeyUpdateHoldsNothingUp(t *testing.T) {
	p := startOpenSSL(t)
	p.echoes(t, 100)
	p.hold()
	p.WriteData(1, false, []byte("before"))
	p.held(t, 1)
	p.updateKeys(t, "k")
	p.held(t, 2)
	p.release()
	within(t, time.Second, "the echo", func() {
		b := make([]byte, len("before"))
		if _, err := io.ReadFull(p.echoed, b); string(b) != "before" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// openSSL is openssl s_client, connected to our server with one stream open, that
// echoes. What s_client reads at once it sends, unless it begins with the letter
// of a command.
type openSSL struct {
	*http2.Framer
	in       io.Writer
	echoed   *io.PipeReader
	messages string // file that TLS messages are logged in
	random   *rand.ChaCha8

	// The relay between the two.
	mu      sync.Mutex
	holding bool
	pending []byte
	server  net.Conn
}

func startOpenSSL(t *testing.T) *openSSL {
	t.Helper()
	c, s := tcpPair(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var echoed *io.PipeWriter
	p := &openSSL{server: c, messages: filepath.Join(t.TempDir(), "messages"), random: rand.NewChaCha8([32]byte{})}
	p.echoed, echoed = io.Pipe()
	command := exec.Command("openssl", "s_client", "-connect", l.Addr().String(), "-alpn", "h2", "-quiet", "-no_ign_eof", "-msg", "-msgfile", p.messages)
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	config := tlsConfig(t)
	running.Go(func() {
		conn := tls.Server(wired(s), config)
		if err := conn.Handshake(); err != nil {
			t.Error(err)
			return
		}
		hbone.Serve(context.Background(), conn, hbone.Options{PingEvery: time.Minute}, accepted(t, echo))
	})
	running.Go(func() { p.relay(l) })
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p.in, p.Framer = in, http2.NewFramer(in, out)
	running.Go(func() { p.read(echoed) })
	t.Cleanup(func() {
		p.echoed.Close()
		command.Process.Kill()
		c.Close()
		l.Close()
		running.Wait()
		command.Wait()
	})

	io.WriteString(in, http2.ClientPreface)
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	p.WriteWindowUpdate(0, 1<<20)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "192.0.2.1:80"})
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: block.Bytes()})
	return p
}

// read takes the data out of the frames that come.
func (p *openSSL) read(echoed *io.PipeWriter) {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			echoed.CloseWithError(err)
			return
		}
		if data, ok := f.(*http2.DataFrame); ok {
			echoed.Write(data.Data())
			if data.StreamEnded() {
				echoed.Close()
			}
		}
	}
}

// relay passes on what s_client and the server send; what s_client does not
// while it is held.
func (p *openSSL) relay(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	var back sync.WaitGroup
	defer back.Wait()
	defer conn.Close()
	back.Go(func() { io.Copy(conn, p.server) })
	for b := make([]byte, 1<<16); ; {
		n, err := conn.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.pending = append(p.pending, b[:n]...)
		p.passLocked()
		p.mu.Unlock()
	}
}

func (p *openSSL) passLocked() {
	if !p.holding {
		p.server.Write(p.pending)
		p.pending = nil
	}
}

func (p *openSSL) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding = true
}

func (p *openSSL) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding = false
	p.passLocked()
}

// held waits until the relay holds so many whole records.
func (p *openSSL) held(t *testing.T, want int) {
	t.Helper()
	eventually(t, "records to hold", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		n := 0
		for rest := p.pending; len(rest) > 5; n++ {
			length := 5 + int(rest[3])<<8 + int(rest[4])
			rest = rest[min(length, len(rest)):]
		}
		return n >= want
	})
}

// echoes sends so many bytes and wants them back.
func (p *openSSL) echoes(t *testing.T, size int) {
	t.Helper()
	sent, got := make([]byte, size), make([]byte, size)
	p.random.Read(sent)
	for i := range sent {
		sent[i] |= 0x80 // no letter, lest it be taken for a command
	}
	for rest := sent; len(rest) > 0; {
		n := min(len(rest), 16<<10)
		p.WriteData(1, false, rest[:n])
		rest = rest[n:]
	}
	within(t, 5*time.Second, "an echo", func() {
		if _, err := io.ReadFull(p.echoed, got); err != nil {
			t.Error(err)
		}
	})
	if !bytes.Equal(sent, got) {
		t.Fatalf("%d bytes come back as others", size)
	}
}

// updateKeys has s_client change its keys (k), and ask for ours to change (K).
func (p *openSSL) updateKeys(t *testing.T, command string) {
	t.Helper()
	sent := p.count(">>> ")
	io.WriteString(p.in, command+"\n")
	p.logged(t, ">>> ", sent+1)
}

// logged waits until so many updates were sent (>>>) or received (<<<).
func (p *openSSL) logged(t *testing.T, direction string, want int) {
	t.Helper()
	eventually(t, direction+"KeyUpdate", func() bool { return p.count(direction) == want })
}

func (p *openSSL) count(direction string) (n int) {
	b, _ := os.ReadFile(p.messages)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, direction) && strings.Contains(line, "KeyUpdate") {
			n++
		}
	}
	return n
}

// eventually ends the test if so is not true within five seconds.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}
