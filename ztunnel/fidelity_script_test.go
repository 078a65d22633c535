package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// A script is what two applications do with connections between them, and what they then say they saw. Each half runs in
// a process of its own in a pod: it is found there by the script's name.
type script struct {
	name           string
	client, server func(*actor)
	wants          sights
	// refused: the server does not listen.
	refused bool
	// buffer, if set, is SO_RCVBUF of both applications' sockets, in bytes.
	buffer int
}

// sights is what the two saw.
type sights struct{ client, server string }

const (
	actorRole = "actor"
	// patience is how long an application waits for anything: many times what it takes.
	patience = 20 * time.Second
	// hangs is how long a script may take from one point to the next.
	hangs = 2 * time.Minute
)

// An actor is one of a script's two applications, in its own process.
type actor struct {
	script   script
	listener *net.TCPListener // nil for the client
	to       netip.AddrPort   // the server
	saw      []string
	cues     *json.Decoder
	lines    *json.Encoder
}

// A cue begins a script in an actor's process, or lets it go on from where it waits.
type cue struct {
	Script string
	Server bool
	To     netip.AddrPort
}

// A line is what an actor says: that it has come to a point and waits there, or that it is done.
type line struct {
	Point string
	Saw   string
	Error string
}

// listening is the first point of every server's.
const listening = "listening"

func actorMain() {
	cues, lines := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o cue
		if cues.Decode(&o) != nil {
			return
		}
		var r line
		if err := perform(o, cues, lines, &r); err != nil {
			r.Error = err.Error()
		}
		if lines.Encode(r) != nil {
			return
		}
	}
}

// misfortune ends a script: something happened that it is not about.
type misfortune struct{ error }

func perform(o cue, cues *json.Decoder, lines *json.Encoder, r *line) (err error) {
	defer func() {
		if caught := recover(); caught != nil {
			m, ok := caught.(misfortune)
			if !ok {
				panic(caught)
			}
			err = m.error
		}
	}()
	for _, s := range scripts() {
		if s.name != o.Script {
			continue
		}
		a := &actor{script: s, to: o.To, cues: cues, lines: lines}
		act := s.client
		if o.Server {
			act = s.server
			if !s.refused {
				l, err := (&net.ListenConfig{Control: a.prepare}).Listen(context.Background(), "tcp", o.To.String())
				if err != nil {
					return err
				}
				defer l.Close()
				a.listener = l.(*net.TCPListener)
			}
			a.meet(listening)
		}
		if act != nil {
			act(a)
		}
		r.Saw = strings.Join(a.saw, ", ")
		return nil
	}
	return fmt.Errorf("no script %q", o.Script)
}

func (a *actor) prepare(_, _ string, raw syscall.RawConn) (err error) {
	if a.script.buffer == 0 {
		return nil
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, a.script.buffer) })
	return err
}

// dial connects to the server, at its port plus offset.
func (a *actor) dial(offset uint16) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience, Control: a.prepare}
	c, err := d.Dial("tcp", netip.AddrPortFrom(a.to.Addr(), a.to.Port()+offset).String())
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

func (a *actor) accept() *net.TCPConn {
	a.listener.SetDeadline(time.Now().Add(patience))
	c, err := a.listener.AcceptTCP()
	a.must(err)
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// connect is dial or accept, by the side that this is.
func (a *actor) connect() *net.TCPConn {
	if a.listener != nil {
		return a.accept()
	}
	c, err := a.dial(0)
	a.must(err)
	return c
}

// converse connects, and exchanges a byte both ways: from then on the connection stands from end to end.
func (a *actor) converse() *net.TCPConn {
	c := a.connect()
	a.write(c, []byte("?"))
	_, err := io.ReadFull(c, make([]byte, 1))
	a.must(err)
	return c
}

func (a *actor) write(c io.Writer, b []byte) {
	n, err := c.Write(b)
	if err != nil {
		a.must(fmt.Errorf("after %d of %d bytes: %w", n, len(b), err))
	}
}

// see is for the record that is compared.
func (a *actor) see(format string, args ...any) { a.saw = append(a.saw, fmt.Sprintf(format, args...)) }

// must is for what the script is not about.
func (a *actor) must(err error) {
	if err != nil {
		panic(misfortune{err})
	}
}

// meet waits until the other application has come to the same point. It says so behind the network's back.
func (a *actor) meet(point string) {
	a.must(a.lines.Encode(line{Point: point}))
	var o cue
	a.must(a.cues.Decode(&o))
}

// word is an error as applications tell them apart.
func word(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "no error"
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// stage is an actor's process, as the test has it.
type stage struct {
	pod     *netnstest.Pod
	process *netnstest.Process
	cues    *json.Encoder
	lines   chan line // closed when the process has ended
}

// begin runs a half of a script; the process is started if it does not run.
func (s *stage) begin(o cue) error {
	if s.process == nil {
		// Go's scheduler interrupts by signals; where one is pending, read(2) at urgent data says that there is nothing.
		s.process = s.pod.StartRole(actorRole, "GODEBUG=asyncpreemptoff=1")
		s.cues, s.lines = json.NewEncoder(s.process.Stdin), make(chan line)
		go func(from io.Reader, to chan<- line) {
			defer close(to)
			decoder := json.NewDecoder(bufio.NewReader(from))
			for {
				var r line
				if decoder.Decode(&r) != nil {
					return
				}
				to <- r
			}
		}(s.process.Stdout, s.lines)
	}
	return s.cues.Encode(o)
}

// dead is what an actor saw whose process has ended.
const dead = "dead"

// hear waits for the next word. Whoever does not say it in time is not asked again.
func (s *stage) hear() line {
	limit := time.NewTimer(hangs)
	defer limit.Stop()
	select {
	case r, ok := <-s.lines:
		if ok {
			return r
		}
		s.kill()
		return line{Saw: dead}
	case <-limit.C:
		s.kill()
		return line{Error: "it hangs"}
	}
}

func (s *stage) kill() {
	s.process.Kill()
	s.process = nil
}

// play runs both halves. What at has for a point is done when both have met there.
func (p *path) play(t *testing.T, name string, at map[string]func()) sights {
	t.Helper()
	saw, err := p.tryPlay(name, p.to(), at)
	if err != nil {
		t.Fatal(err)
	}
	return saw
}

// tryPlay plays with an address of the server's.
func (p *path) tryPlay(name string, to netip.AddrPort, at map[string]func()) (sights, error) {
	o := cue{Script: name, To: to}
	server := o
	server.Server = true
	if err := p.server.begin(server); err != nil {
		return sights{}, err
	}
	if r := p.server.hear(); r.Point != listening {
		return sights{}, fmt.Errorf("server: %+v", r)
	}
	if err := errors.Join(p.client.begin(o), p.server.cues.Encode(cue{})); err != nil {
		return sights{}, err
	}
	for {
		heard := make(chan line)
		go func() { heard <- p.server.hear() }()
		c, s := p.client.hear(), <-heard
		if c.Error != "" || s.Error != "" || c.Point != s.Point {
			p.restart()
			return sights{}, fmt.Errorf("client: %+v, server: %+v", c, s)
		}
		if c.Point == "" {
			return sights{c.Saw, s.Saw}, nil
		}
		if f := at[c.Point]; f != nil {
			f()
		}
		if err := errors.Join(p.client.cues.Encode(cue{}), p.server.cues.Encode(cue{})); err != nil {
			return sights{}, err
		}
	}
}

// restart ends what hangs.
func (p *path) restart() {
	for _, s := range []*stage{p.client, p.server} {
		if s.process != nil {
			s.kill()
		}
	}
}
