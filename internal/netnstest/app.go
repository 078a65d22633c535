package netnstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process is a role (see Main) that runs in a network namespace. It is killed when the test ends; a role that may outlive
// the test process reads its standard input, which ends then.
type Process struct {
	Stdin  io.WriteCloser
	Stdout io.Reader

	command *exec.Cmd
	kill    sync.Once
}

// StartRole runs a role in the test's own network namespace, which is empty, with more environment variables ("NAME=value").
func StartRole(t testing.TB, role string, environment ...string) *Process {
	t.Helper()
	return start(t, func(f func() error) error { return f() }, Cgroup(), role, environment)
}

// StartRole runs a role in the namespace, as the package's StartRole does.
func (n *NetNS) StartRole(role string, environment ...string) *Process {
	n.t.Helper()
	return start(n.t, n.Do, Cgroup(), role, environment)
}

func start(t testing.TB, in func(func() error) error, cgroup, role string, environment []string) *Process {
	t.Helper()
	p := &Process{command: exec.Command("/proc/self/exe")}
	p.command.Env = append(os.Environ(), roleVariable+"="+role)
	p.command.Env = append(p.command.Env, environment...)
	p.command.Stderr = os.Stderr
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	defer dir.Close()
	p.command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if p.Stdin, err = p.command.StdinPipe(); err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	if p.Stdout, err = p.command.StdoutPipe(); err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	if err := in(p.command.Start); err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	t.Cleanup(p.Kill)
	return p
}

// Kill ends the process as kill -9 does, and waits for its end.
func (p *Process) Kill() {
	p.kill.Do(func() {
		p.command.Process.Kill()
		p.command.Wait()
	})
}

// An App is an application in a pod or on a node: a process that knows nothing of the mesh.
type App struct {
	t       testing.TB
	process *Process

	mu      sync.Mutex // one request at a time
	encoder *json.Encoder
	decoder *json.Decoder
}

// Start runs an application in the namespace.
func (n *NetNS) Start() *App {
	n.t.Helper()
	return n.StartIn(Cgroup())
}

// StartIn runs an application in the namespace and in a cgroup, a folder below Cgroup.
func (n *NetNS) StartIn(cgroup string) *App {
	n.t.Helper()
	p := start(n.t, n.Do, cgroup, appRole, nil)
	return &App{t: n.t, process: p, encoder: json.NewEncoder(p.Stdin), decoder: json.NewDecoder(p.Stdout)}
}

// Kill ends the application.
func (a *App) Kill() { a.process.Kill() }

func (a *App) ask(q request) (r reply, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.encoder.Encode(q); err != nil {
		return r, fmt.Errorf("ask application: %w", err)
	}
	if err := a.decoder.Decode(&r); err != nil {
		return r, fmt.Errorf("hear from application: %w", err)
	}
	switch {
	case r.Error == "":
		return r, nil
	case r.Timeout:
		return r, fmt.Errorf("%s: %w", r.Error, os.ErrDeadlineExceeded)
	case r.Errno != 0:
		return r, fmt.Errorf("%s: %w", r.Error, syscall.Errno(r.Errno))
	}
	return r, errors.New(r.Error)
}

// Listen makes the application serve TCP at an address. It tells whoever connects what it sees, and then sends back
// whatever comes.
func (a *App) Listen(address string) {
	a.t.Helper()
	if _, err := a.ask(request{Op: opListen, Address: address}); err != nil {
		a.t.Fatalf("listen at %s: %v", address, err)
	}
}

// ListenUDP makes the application answer datagrams with what it sees.
func (a *App) ListenUDP(address string) {
	a.t.Helper()
	if _, err := a.ask(request{Op: opListenUDP, Address: address}); err != nil {
		a.t.Fatalf("listen at %s: %v", address, err)
	}
}

// AskUDP sends a datagram and returns who the server sees as its sender.
func (a *App) AskUDP(to netip.AddrPort) (Sight, error) { return a.AskUDPWith(to, DialOptions{}) }

// AskUDPWith does so by a socket of its own kind, and demands that the answer come from whom it asked.
func (a *App) AskUDPWith(to netip.AddrPort, options DialOptions) (Sight, error) {
	r, err := a.ask(request{Op: opAskUDP, Address: to.String(), Options: options})
	return r.Peer, err
}

// A Sight is a connection as one of its ends sees it. IPv4 addresses are never mapped ones.
type Sight struct {
	Local, Remote netip.AddrPort
}

// DialOptions are what an application may do to its socket.
type DialOptions struct {
	MPTCP   bool
	Mapped  bool          // IPv4 by an IPv6 socket
	Device  string        // SO_BINDTODEVICE
	Mark    int           // SO_MARK
	Source  netip.Addr    // bind(2)
	Port    uint16        // bind(2), with Source
	Timeout time.Duration // 3 s if zero

	// Hasty believes the first thing that SO_ERROR says once the socket wakes up, as many programs do. Others look whether the
	// socket has a peer, and wait on if it has none.
	Hasty bool

	Unconnected bool // of a datagram: sendto(2) without connect(2)
}

// An AppConn is a connection of an application to another.
type AppConn struct {
	Sight       // what the client sees
	Peer  Sight // what the server sees

	app *App
	id  int
}

// Dial connects to another application.
func (a *App) Dial(to netip.AddrPort) (*AppConn, error) { return a.DialWith(to, DialOptions{}) }

// DialWith connects to another application, and waits until that says what it sees. The error wraps the errno of
// connect(2), or of the first read; os.ErrDeadlineExceeded if nothing came.
func (a *App) DialWith(to netip.AddrPort, options DialOptions) (*AppConn, error) {
	r, err := a.ask(request{Op: opDial, Address: to.String(), Options: options})
	if err != nil {
		return nil, err
	}
	return &AppConn{Sight: r.Own, Peer: r.Peer, app: a, id: r.ID}, nil
}

// Echo sends text and demands it back.
func (c *AppConn) Echo(text string) error { return c.EchoWithin(text, 0) }

// EchoWithin is Echo with a timeout other than 3 s.
func (c *AppConn) EchoWithin(text string, timeout time.Duration) error {
	r, err := c.app.ask(request{Op: opEcho, ID: c.id, Text: text, Options: DialOptions{Timeout: timeout}})
	if err == nil && r.Text != text {
		return fmt.Errorf("sent %q, got %q", text, r.Text)
	}
	return err
}

// Close closes the connection.
func (c *AppConn) Close() error {
	_, err := c.app.ask(request{Op: opClose, ID: c.id})
	return err
}
