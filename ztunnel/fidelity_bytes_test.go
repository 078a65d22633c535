package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// byteScripts are about what goes through connections.
func byteScripts() []script {
	var all []script
	for _, some := range [][]script{
		both("64 MiB in one write", writeAtOnce, func(a *actor) { a.seeIntact(a.converse()) }, "67108864 intact bytes then EOF"),
		both("writes of odd sizes", writeOdd, func(a *actor) { a.seeIntact(a.converse()) }, fmt.Sprintf("%d intact bytes then EOF", oddTotal())),
		both("one byte, 1000 times there and back", pingPong, echo, ""),
		both("two small writes, one answer", writeWriteRead, answerTwo, ""),
		both("corked", writeCorked, func(a *actor) { a.seeIntact(a.converse()) }, "40000 intact bytes then EOF"),
		both("urgent data", writeUrgent, func(a *actor) { a.seeIntact(a.converse()) }, "8000 intact bytes then EOF"),
		both("urgent data amid bulk", writeUrgentBulk, func(a *actor) { a.seeIntact(a.converse()) }, "16777216 intact bytes then EOF"),
	} {
		all = append(all, some...)
	}
	for i := range all {
		w := &all[i].wants
		switch all[i].name {
		case "one byte, 1000 times there and back/by client", "two small writes, one answer/by client":
			w.client = "no stalls"
		case "one byte, 1000 times there and back/by server", "two small writes, one answer/by server":
			w.server = "no stalls"
		}
	}
	tiny := both("a receive buffer of 4 KiB", func(a *actor) { c := a.converse(); a.send(c, 256<<10); c.Close() },
		func(a *actor) { a.seeIntact(a.converse()) }, "262144 intact bytes then EOF")
	for i := range tiny {
		tiny[i].buffer = 4 << 10
	}
	all = append(all, tiny...)
	return append(all,
		script{
			name: "the server speaks first", client: answerBanner, server: speakFirst,
			wants: sights{"220 ready", "EHLO"},
		},
		script{
			name:   "only the server speaks",
			client: func(a *actor) { a.seeIntact(a.connect()) },
			server: func(a *actor) { c := a.connect(); a.send(c, 26); c.Close() },
			wants:  sights{client: "26 intact bytes then EOF"},
		},
	)
}

// pattern is what is sent: without end, and no part like another.
func pattern() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{}) }

func patternBytes(n int) []byte {
	b := make([]byte, n)
	pattern().Read(b)
	return b
}

func (a *actor) send(c io.Writer, n int64) {
	_, err := io.CopyN(c, pattern(), n)
	a.must(err)
}

// seeIntact reads to the end, compares with the pattern, and closes.
func (a *actor) seeIntact(c *net.TCPConn) {
	a.seeWhole(c)
	c.Close()
}

func (a *actor) seeWhole(c io.Reader) {
	total, damage, err := compare(c)
	switch {
	case damage:
		a.see("damage after %d bytes", total)
	default:
		a.see("%d intact bytes then %s", total, word(err))
	}
}

// compare reads to the end. The error is io.EOF if that came in order.
func compare(c io.Reader) (total int64, damage bool, err error) {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for source := pattern(); ; {
		n, err := c.Read(got)
		source.Read(want[:n])
		for i := range n {
			if got[i] != want[i] {
				return total + int64(i), true, nil
			}
		}
		total += int64(n)
		if err != nil {
			return total, false, err
		}
	}
}

// writeAtOnce makes one system call.
func writeAtOnce(a *actor) {
	c := a.converse()
	all := patternBytes(64 << 20)
	file, err := c.File()
	a.must(err)
	defer file.Close()
	n, err := unix.Write(int(file.Fd()), all) // Fd makes it block
	a.must(err)
	if n != len(all) {
		a.must(fmt.Errorf("write took %d of %d bytes", n, len(all)))
	}
	a.must(c.CloseWrite())
	c.Close()
}

// oddSizes are around those of segments, records, frames and buffers.
var oddSizes = []int{1, 2, 7, 1447, 1448, 1449, 4095, 4097, 16383, 16384, 16385, 1, 65535, 65537, 262143, 1<<20 + 1, 3}

func oddTotal() (n int) {
	for _, size := range oddSizes {
		n += size
	}
	return n
}

func writeOdd(a *actor) {
	c := a.converse()
	all := patternBytes(oddTotal())
	for _, size := range oddSizes {
		a.write(c, all[:size])
		all = all[size:]
	}
	c.Close()
}

const (
	// stall is less than the 40 ms for which Linux delays an acknowledgement, and more than a round trip takes.
	stall = 30 * time.Millisecond
	// maxStalls of the rounds may have other reasons: other work on the machine. Where an acknowledgement is waited for, every
	// round stalls.
	maxStalls = 20
)

// rounds plays f again and again, and sees whether that stalls.
func (a *actor) rounds(n int, f func()) {
	stalls := 0
	for range n {
		start := time.Now()
		f()
		if time.Since(start) > stall {
			stalls++
		}
	}
	if stalls > maxStalls {
		a.see("%d of %d rounds stalled", stalls, n)
		return
	}
	a.see("no stalls")
}

func pingPong(a *actor) {
	c := a.converse()
	defer c.Close()
	b := []byte("x")
	a.rounds(1000, func() {
		a.write(c, b)
		_, err := io.ReadFull(c, b)
		a.must(err)
	})
}

func echo(a *actor) {
	c := a.converse()
	_, err := io.Copy(c, c)
	a.must(err)
	c.Close()
}

// writeWriteRead is what Nagle's algorithm and delayed acknowledgements spoil together: each socket on the way that is without
// TCP_NODELAY holds the second byte until the first is acknowledged.
func writeWriteRead(a *actor) {
	c := a.converse()
	defer c.Close()
	a.rounds(200, func() {
		a.write(c, []byte("a"))
		time.Sleep(time.Millisecond) // the first is on its way through the proxies
		a.write(c, []byte("b"))
		_, err := io.ReadFull(c, make([]byte, 1))
		a.must(err)
	})
}

func answerTwo(a *actor) {
	c := a.converse()
	for {
		if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
			if !errors.Is(err, io.EOF) {
				a.must(err)
			}
			c.Close()
			return
		}
		a.write(c, []byte("c"))
	}
}

func writeCorked(a *actor) {
	c := a.converse()
	all := patternBytes(40000)
	for i := range 4 {
		a.option(c, unix.TCP_CORK, 1)
		for j := range 100 {
			a.write(c, all[i*10000+j*100:][:100])
		}
		a.option(c, unix.TCP_CORK, 0)
	}
	c.Close()
}

func (a *actor) option(c *net.TCPConn, option, value int) {
	a.control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value) })
}

func (a *actor) control(c syscall.Conn, f func(fd int) error) {
	raw, err := c.SyscallConn()
	a.must(err)
	raw.Control(func(fd uintptr) { err = f(int(fd)) })
	a.must(err)
}

// writeUrgent sends an urgent byte amid others: one, for a second would make the first an ordinary one if that was not read
// yet. Whoever does not ask for it does not get it: what is read is the rest. That a reader who asks gets it is more than a
// proxy can do, which reads a stream and not segments.
func writeUrgent(a *actor) {
	c := a.converse()
	all := patternBytes(8000)
	a.write(c, all[:4000])
	a.urgent(c)
	a.write(c, all[4000:])
	c.Close()
}

func (a *actor) urgent(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	a.must(err)
	var sent error
	a.must(raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
		return sent != unix.EAGAIN // once there is room
	}))
	a.must(sent)
}

// writeUrgentBulk has the urgent byte come while the proxies are moving as much as they can.
func writeUrgentBulk(a *actor) {
	c := a.converse()
	all := patternBytes(16 << 20)
	a.write(c, all[:8<<20])
	a.urgent(c)
	a.write(c, all[8<<20:])
	c.Close()
}

func speakFirst(a *actor) {
	c := a.connect()
	a.write(c, []byte("220 ready\n"))
	line := make([]byte, 5)
	_, err := io.ReadFull(c, line)
	a.must(err)
	a.see("%s", line[:4])
	c.Close()
}

func answerBanner(a *actor) {
	c := a.connect()
	line := make([]byte, 10)
	_, err := io.ReadFull(c, line)
	a.must(err)
	a.see("%s", line[:9])
	a.write(c, []byte("EHLO\n"))
	_, err = c.Read(line)
	if !errors.Is(err, io.EOF) {
		a.must(fmt.Errorf("after the answer: %w", errors.Join(err, os.ErrInvalid)))
	}
	c.Close()
}
