package netnstest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	opListen    = "listen"
	opListenUDP = "listen-udp"
	opAskUDP    = "ask-udp"
	opDial      = "dial"
	opEcho      = "echo"
	opClose     = "close"

	defaultTimeout = 3 * time.Second
)

type request struct {
	Op      string
	Address string
	ID      int
	Text    string
	Options DialOptions
}

type reply struct {
	ID        int
	Text      string
	Own, Peer Sight
	Error     string
	Errno     int
	Timeout   bool
}

// app is the application's side of App.
type app struct {
	conns map[int]*appConn
}

type appConn struct {
	*net.TCPConn
	reader *bufio.Reader
}

// appMain answers requests until its standard input ends.
func appMain() {
	a := app{conns: map[int]*appConn{}}
	requests, replies := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q request
		if requests.Decode(&q) != nil {
			return
		}
		r, err := a.serve(q)
		if err != nil {
			r.Error = err.Error()
			r.Timeout = errors.Is(err, os.ErrDeadlineExceeded)
			var errno syscall.Errno
			if errors.As(err, &errno) {
				r.Errno = int(errno)
			}
		}
		if replies.Encode(r) != nil {
			return
		}
	}
}

func (a *app) serve(q request) (reply, error) {
	switch q.Op {
	case opListen:
		return reply{}, listen(q.Address)
	case opListenUDP:
		return reply{}, listenUDP(q.Address)
	case opAskUDP:
		return askUDP(q.Address, q.Options)
	case opDial:
		return a.dial(q.Address, q.Options)
	case opEcho:
		return a.echo(a.conns[q.ID], q.Text, q.Options.timeout())
	case opClose:
		return reply{}, a.conns[q.ID].Close()
	}
	return reply{}, fmt.Errorf("no such request: %q", q.Op)
}

func listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if json.NewEncoder(c).Encode(sight(c)) == nil {
					io.Copy(c, c)
				}
			}()
		}
	}()
	return nil
}

func sight(c net.Conn) Sight {
	return Sight{Local: plain(c.LocalAddr()), Remote: plain(c.RemoteAddr())}
}

func plain(a net.Addr) netip.AddrPort {
	p := a.(interface{ AddrPort() netip.AddrPort }).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (a *app) dial(address string, o DialOptions) (reply, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return reply{}, err
	}
	deadline := time.Now().Add(o.timeout())
	conn, err := connectSocket(to, o)
	if err != nil {
		return reply{}, err
	}
	c := &appConn{TCPConn: conn, reader: bufio.NewReader(conn)}
	c.SetDeadline(deadline)
	line, err := c.reader.ReadBytes('\n')
	if err != nil {
		c.Close()
		return reply{}, err
	}
	r := reply{ID: len(a.conns), Own: sight(c)}
	if err := json.Unmarshal(line, &r.Peer); err != nil {
		c.Close()
		return reply{}, fmt.Errorf("read what the server sees in %q: %w", line, err)
	}
	a.conns[r.ID] = c
	return r, nil
}

func (o DialOptions) timeout() time.Duration {
	if o.Timeout == 0 {
		return defaultTimeout
	}
	return o.Timeout
}

// connectSocket goes through the system calls one by one, for the options that package net does not have.
func connectSocket(to netip.AddrPort, o DialOptions) (*net.TCPConn, error) {
	family, protocol := unix.AF_INET6, unix.IPPROTO_TCP
	if to.Addr().Is4() && !o.Mapped {
		family = unix.AF_INET
	}
	if o.MPTCP {
		protocol = unix.IPPROTO_MPTCP
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close()
	if err := prepare(fd, family, o); err != nil {
		return nil, err
	}
	err = unix.Connect(fd, sockaddr(to, family))
	if err == unix.EINPROGRESS {
		err = waitConnected(fd, time.Now().Add(o.timeout()), o.Hasty)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func waitConnected(fd int, deadline time.Time, hasty bool) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && errno != 0 {
				err = unix.Errno(errno)
			}
			if err == nil && !hasty && !hasPeer(fd) {
				continue
			}
			return err
		}
	}
}

func hasPeer(fd int) bool {
	_, err := unix.Getpeername(fd)
	return err == nil
}

func prepare(fd, family int, o DialOptions) error {
	if o.Device != "" {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, o.Device); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if o.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, o.Mark); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if o.Source.IsValid() {
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(o.Source, o.Port), family)))
	}
	return nil
}

func sockaddr(a netip.AddrPort, family int) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (a *app) echo(c *appConn, text string, timeout time.Duration) (reply, error) {
	c.SetDeadline(time.Now().Add(timeout))
	if _, err := io.WriteString(c, text); err != nil {
		return reply{}, err
	}
	got := make([]byte, len(text))
	_, err := io.ReadFull(c.reader, got)
	return reply{Text: string(got)}, err
}

func listenUDP(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			_, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			answer, _ := json.Marshal(Sight{Local: plain(c.LocalAddr()), Remote: plain(from)})
			c.WriteTo(answer, from)
		}
	}()
	return nil
}

func askUDP(address string, o DialOptions) (r reply, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return r, err
	}
	family := unix.AF_INET6
	if to.Addr().Is4() && !o.Mapped {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return r, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "datagrams")
	defer file.Close()
	if err := prepare(fd, family, o); err != nil {
		return r, err
	}
	if !o.Unconnected {
		if err := unix.Connect(fd, sockaddr(to, family)); err != nil {
			return r, os.NewSyscallError("connect", err)
		}
	}
	c, err := net.FilePacketConn(file)
	if err != nil {
		return r, err
	}
	defer c.Close()
	socket := c.(*net.UDPConn)
	socket.SetDeadline(time.Now().Add(o.timeout()))
	if o.Unconnected {
		_, err = socket.WriteToUDPAddrPort([]byte("?"), to)
	} else {
		_, err = socket.Write([]byte("?"))
	}
	if err != nil {
		return r, err
	}
	answer := make([]byte, 1500)
	n, from, err := socket.ReadFromUDPAddrPort(answer)
	if err != nil {
		return r, err
	}
	r.Own = Sight{Local: plain(socket.LocalAddr()), Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	if r.Own.Remote != to {
		return r, fmt.Errorf("asked %s, %s answered", to, r.Own.Remote)
	}
	return r, json.Unmarshal(answer[:n], &r.Peer)
}
