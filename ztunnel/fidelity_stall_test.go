package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// stalledReaders share a tunnel, and leave room in it.
	stalledReaders = 24
	// offered to each of them, in bytes: several times what sockets and proxies hold on the way.
	offered = 24 << 20
	// proxyPerReader is what the proxies may hold in memory for one of them, in bytes: a stream's window on either side, and
	// twice that, since the collector lets the heap grow.
	proxyPerReader = 16 << 20
)

const (
	stalled = "stalled"
	resumed = "resumed"
)

func stallScripts() []script {
	return both("slow readers", writeToSlow, readSlowly, fmt.Sprintf("%d readers got all", stalledReaders))
}

// writeToSlow writes to readers that do not read, until no writer gets on. Another connection goes on meanwhile.
func writeToSlow(a *actor) {
	all := a.converseMany(stalledReaders)
	written := make([]int64, len(all))
	a.must(concurrently(len(all), func(i int) (err error) {
		written[i], err = fillFrom(all[i], offered, time.Second)
		return err
	}))
	most := int64(0)
	for _, n := range written {
		most = max(most, n)
	}
	if most == offered {
		a.must(fmt.Errorf("a writer got rid of all that was offered, %d bytes, though nobody reads", most))
	}
	a.meet(stalled)
	other := a.converse()
	for range 100 {
		a.write(other, []byte("x"))
		_, err := io.ReadFull(other, make([]byte, 1))
		a.must(err)
	}
	other.Close()
	a.meet(resumed)
	a.must(concurrently(len(all), func(i int) error {
		defer all[i].Close()
		rest := pattern()
		io.CopyN(io.Discard, rest, written[i])
		all[i].SetDeadline(time.Now().Add(patience))
		_, err := io.CopyN(all[i], rest, offered-written[i])
		return err
	}))
}

func readSlowly(a *actor) {
	all := a.converseMany(stalledReaders)
	a.meet(stalled)
	other := a.converse()
	_, err := io.Copy(other, other)
	a.must(err)
	other.Close()
	a.meet(resumed)
	got := 0
	var mu sync.Mutex
	a.must(concurrently(len(all), func(i int) error {
		defer all[i].Close()
		all[i].SetDeadline(time.Now().Add(patience))
		n, damage, err := compare(all[i])
		if n == offered && !damage && errors.Is(err, io.EOF) {
			mu.Lock()
			defer mu.Unlock()
			got++
		}
		return nil
	}))
	a.see("%d readers got all", got)
}

func (a *actor) converseMany(n int) []*net.TCPConn {
	all := make([]*net.TCPConn, n)
	for i := range all {
		all[i] = a.converse()
	}
	return all
}

func concurrently(n int, f func(i int) error) error {
	var group sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		group.Go(func() { errs[i] = f(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// fillFrom writes the pattern until nothing more is taken for some time, or limit was.
func fillFrom(c *net.TCPConn, limit int64, quiet time.Duration) (total int64, err error) {
	defer c.SetWriteDeadline(time.Now().Add(patience))
	chunk := make([]byte, 64<<10)
	for source := pattern(); total < limit; {
		b := chunk[:min(int64(len(chunk)), limit-total)]
		source.Read(b)
		c.SetWriteDeadline(time.Now().Add(quiet))
		n, err := c.Write(b)
		total += int64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// A reader that does not read stops its writer, takes a bounded part of the proxies' memory, and nothing of the others.
func testSlowReaders(t *testing.T, _ *bed, paths map[string]*path) {
	debug.FreeOSMemory()
	before := resident(t)
	eachPath(t, paths, func(t *testing.T, p *path) {
		for _, s := range stallScripts() {
			t.Run(s.name, func(t *testing.T) {
				saw := p.play(t, s.name, map[string]func(){stalled: func() {
					grown := resident(t) - before
					t.Logf("%d stalled connections: %d KiB each", stalledReaders, grown/stalledReaders>>10)
					if grown > stalledReaders*proxyPerReader {
						t.Errorf("the proxies grew by %d MiB for %d stalled connections", grown>>20, stalledReaders)
					}
				}})
				if saw != s.wants {
					t.Errorf("saw %+v, want %+v", saw, s.wants)
				}
			})
		}
	})
}

// resident is how much memory the process has, in bytes: the proxies run in it, the applications do not.
func resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
