package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarding is one way from the host into the lab.
type forwarding struct {
	Cgroup string
	Netns  string // where the outgoing side sits
	Local  netip.AddrPort
	Target netip.AddrPort
}

// forward is the command of this name.
func (c *cluster) forward(args []string) error {
	if len(args) == 2 && args[0] == "--stop" {
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return fmt.Errorf("parse port: %w", err)
		}
		return killCgroup(c.forwardGroup(uint16(port)))
	}
	from := controlPlane
	if len(args) == 4 && args[0] == "--in" {
		from, args = args[1], args[2:]
	}
	if len(args) != 2 {
		return errUsage
	}
	m, err := findMachine(from)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return fmt.Errorf("parse port: %w", err)
	}
	target, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return fmt.Errorf("parse target: %w", err)
	}
	local, err := ensureForwarder(c.layout, m, uint16(port), target)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.out, local)
	return nil
}

func (l layout) forwardGroup(port uint16) string {
	return filepath.Join(l.cgroup(), "forward", strconv.Itoa(int(port)))
}

// ensureForwarder starts a detached process that carries connections to
// 127.0.0.1:port, unless one does so already. Port 0 chooses a free one.
func ensureForwarder(l layout, m machine, port uint16, target netip.AddrPort) (netip.AddrPort, error) {
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	want := forwarding{Cgroup: l.forwardGroup(port), Netns: l.netns(m.name), Local: local, Target: target}
	if port != 0 {
		if running, ok := runningForwarder(want.Cgroup); ok && running == want {
			return local, nil
		}
		// The port may be wanted for another target now.
		if err := killCgroup(want.Cgroup); err != nil {
			return local, err
		}
	}
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(local))
	if err != nil {
		return local, fmt.Errorf("listen for forwarder: %w", err)
	}
	defer listener.Close()
	want.Local = listener.Addr().(*net.TCPAddr).AddrPort()
	want.Cgroup = l.forwardGroup(want.Local.Port())
	return want.Local, startForwarder(l, want, listener)
}

func startForwarder(l layout, f forwarding, listener *net.TCPListener) error {
	if err := makeCgroup(f.Cgroup); err != nil {
		return err
	}
	text, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode forwarding: %w", err)
	}
	inherited, err := listener.File()
	if err != nil {
		return fmt.Errorf("hand listener over: %w", err)
	}
	defer inherited.Close()
	log, err := os.OpenFile(filepath.Join(l.state, "forward.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of forwarder: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "_forward", string(text))
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start forwarder: %w", err)
	}
	return cmd.Process.Release()
}

// runningForwarder reads from the process itself what it forwards.
func runningForwarder(group string) (forwarding, bool) {
	pids, err := processes(group)
	if err != nil {
		return forwarding{}, false
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		var f forwarding
		if len(args) == 3 && args[1] == "_forward" && json.Unmarshal([]byte(args[2]), &f) == nil {
			return f, true
		}
	}
	return forwarding{}, false
}

// forwardStage is the forwarder's process. Its listener is inherited.
func forwardStage(args []string) error {
	var f forwarding
	if len(args) != 1 {
		return errUsage
	}
	if err := json.Unmarshal([]byte(args[0]), &f); err != nil {
		return fmt.Errorf("read forwarding: %w", err)
	}
	if err := joinCgroup(f.Cgroup); err != nil {
		return err
	}
	const firstInherited = 3
	listener, err := net.FileListener(os.NewFile(firstInherited, "listener"))
	if err != nil {
		return fmt.Errorf("take listener over: %w", err)
	}
	own, err := ownNetnsCookie()
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			if err := carry(conn.(*net.TCPConn), f, own); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

// carry copies both ways until both halves are closed.
func carry(client *net.TCPConn, f forwarding, hostCookie uint64) error {
	defer client.Close()
	server, err := dialInside(f, hostCookie)
	if err != nil {
		return fmt.Errorf("forward to %s in %s: %w", f.Target, f.Netns, err)
	}
	defer server.Close()
	var ways sync.WaitGroup
	for _, way := range []struct{ from, to *net.TCPConn }{{client, server}, {server, client}} {
		ways.Go(func() {
			io.Copy(way.to, way.from) // an error ends this way, as does the end
			way.to.CloseWrite()
		})
	}
	ways.Wait()
	return nil
}

// dialInside connects from inside a machine's namespace. The machine may have
// been off and on since the last time, so the name is resolved every time.
func dialInside(f forwarding, hostCookie uint64) (server *net.TCPConn, err error) {
	dialer := net.Dialer{Timeout: requestPatience, ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		return refuseHostSocket(raw, hostCookie)
	}}
	err = inNetns(f.Netns, func() error {
		conn, err := dialer.Dial("tcp", f.Target.String())
		if err == nil {
			server = conn.(*net.TCPConn)
		}
		return err
	})
	return server, err
}

// refuseHostSocket makes certain that a socket is not the host's: from there
// a packet to the lab would leave the machine.
func refuseHostSocket(raw syscall.RawConn, hostCookie uint64) error {
	var cookie uint64
	var err error
	if controlErr := raw.Control(func(fd uintptr) {
		cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	}); controlErr != nil {
		return controlErr
	}
	if err == nil && cookie == hostCookie {
		err = errors.New("socket is in the host's network namespace")
	}
	return err
}

func ownNetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("identify the host's network namespace: %w", err)
	}
	return cookie, nil
}
