package main

import (
	"errors"
	"io"
	"math"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const carried = "a connection"

// closeScripts are about how connections end.
func closeScripts() []script {
	all := []script{{name: carried, client: converseAndMeet, server: converseAndMeet}}
	for _, some := range [][]script{
		// RFC 9293 section 3.10.4: a reset is an error, and no end of data.
		both("reset", func(a *actor) { reset(converseThenMeet(a, "standing")) },
			func(a *actor) { a.seeEnd(converseThenMeet(a, "standing")) }, "0 bytes then ECONNRESET"),
		both("reset after the other's FIN", resetAfterTheirFIN, finThenRead, "0 bytes then ECONNRESET"),
		both("reset after its own FIN", resetAfterOwnFIN, readThenWriteOn, "0 bytes then EOF, soon EPIPE"),
		both("reset while the other is blocked", resetTheBlocked, writeUntilError, "ECONNRESET"),
		both("close with unread data", closeUnread, writeAndSeeEnd, "0 bytes then ECONNRESET"),
		both("close right after writing", closeAfterWriting, readAll, "8388608 intact bytes then EOF"),
		both("half-close, then the other goes on", halfClose, sendAfterEOF, "1048576 intact bytes then EOF"),
		both("killed", killed, func(a *actor) { a.seeEnd(converseThenMeet(a, "standing")) }, "0 bytes then EOF"),
		both("killed with unread data", killedUnread, writeAndSeeEnd, "0 bytes then ECONNRESET"),
	} {
		all = append(all, some...)
	}
	for i := range all {
		w := &all[i].wants
		switch all[i].name {
		case "half-close, then the other goes on/by client":
			w.client = "8388608 intact bytes then EOF"
		case "half-close, then the other goes on/by server":
			w.server = "8388608 intact bytes then EOF"
		case "killed/by client", "killed with unread data/by client":
			w.client = dead
		case "killed/by server", "killed with unread data/by server":
			w.server = dead
		}
	}
	return append(all,
		script{
			name: "both close their halves at once", client: exchange, server: exchange,
			wants: sights{"1048576 intact bytes then EOF", "1048576 intact bytes then EOF"},
		},
		script{
			name: "closed without a word", client: func(a *actor) { a.connect().Close() }, server: func(a *actor) { a.seeEnd(a.connect()) },
			wants: sights{server: "0 bytes then EOF"},
		},
	)
}

func converseThenMeet(a *actor, point string) *net.TCPConn {
	c := a.converse()
	a.meet(point)
	return c
}

func converseAndMeet(a *actor) { converseThenMeet(a, carried).Close() }

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// seeEnd reads to the end, whichever it is.
func (a *actor) seeEnd(c *net.TCPConn) {
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF
	}
	a.see("%d bytes then %s", n, word(err))
}

func resetAfterTheirFIN(a *actor) {
	c := a.converse()
	_, err := io.Copy(io.Discard, c)
	a.must(err)
	reset(c)
}

func finThenRead(a *actor) {
	c := a.converse()
	a.must(c.CloseWrite())
	a.seeEnd(c)
}

func resetAfterOwnFIN(a *actor) {
	c := a.converse()
	a.must(c.CloseWrite())
	a.meet("half-closed")
	reset(c)
}

// soon is less than any timer that could end a connection.
const soon = 3 * time.Second

func readThenWriteOn(a *actor) {
	c := a.converse()
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	a.must(err)
	a.see("%d bytes then EOF", n)
	a.meet("half-closed")
	for start := time.Now(); time.Since(start) < soon; time.Sleep(5 * time.Millisecond) {
		if _, err := c.Write([]byte("more")); err != nil {
			a.see("soon %s", word(err))
			return
		}
	}
	a.see("no error for long")
}

const blocked = "blocked"

func resetTheBlocked(a *actor) { reset(converseThenMeet(a, blocked)) }

func writeUntilError(a *actor) {
	c := a.converse()
	defer c.Close()
	_, err := fillFrom(c, math.MaxInt64, 300*time.Millisecond)
	a.must(err)
	a.meet(blocked)
	for {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			a.see("%s", word(err))
			return
		}
	}
}

const unread = 64 << 10

// awaitUnread returns when the receive buffer holds what the other wrote.
func (a *actor) awaitUnread(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	a.must(err)
	for queued, start := 0, time.Now(); queued < unread; time.Sleep(time.Millisecond) {
		raw.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		a.must(err)
		if time.Since(start) > patience {
			a.must(errors.New("the data does not come"))
		}
	}
}

func closeUnread(a *actor) {
	c := a.converse()
	a.awaitUnread(c)
	c.Close()
}

func writeAndSeeEnd(a *actor) {
	c := a.converse()
	a.write(c, make([]byte, unread))
	a.seeEnd(c)
}

func closeAfterWriting(a *actor) {
	c := a.converse()
	a.send(c, 8<<20)
	c.Close()
}

func readAll(a *actor) {
	c := a.converse()
	time.Sleep(50 * time.Millisecond) // the other is gone before all is read
	a.seeIntact(c)
}

func halfClose(a *actor) {
	c := a.converse()
	a.send(c, 1<<20)
	a.must(c.CloseWrite())
	a.seeIntact(c)
}

func sendAfterEOF(a *actor) {
	c := a.converse()
	defer c.Close()
	a.seeWhole(c)
	a.send(c, 8<<20)
}

func exchange(a *actor) {
	c := a.converse()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(c, pattern(), 1<<20)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	a.seeWhole(c)
	a.must(<-sent)
	c.Close()
}

func killed(a *actor) {
	converseThenMeet(a, "standing")
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func killedUnread(a *actor) {
	c := a.converse()
	a.awaitUnread(c)
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
