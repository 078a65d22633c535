package hbone

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wirePair is a Wire and the peer at its other end, which sends what it likes.
func wirePair(t *testing.T) (*Wire, *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	wire, err := NewWire(tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close(); tcp.Close() })
	return wire, peer
}

// record is a TLS record of some payload, which begins with number.
func record(kind byte, number, length int) []byte {
	b := []byte{kind, 3, 3}
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	payload := bytes.Repeat([]byte{byte(number)}, length)
	return append(b, payload...)
}

// consumed waits until the kernel holds nothing that has not been read.
func consumed(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); unread(t, conn) > 0; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("not read")
		}
	}
}

// unread is how much the kernel holds for conn.
func unread(t *testing.T, conn *net.TCPConn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }), err); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWireGivesWholeRecords: however records are cut into segments, each Read
// gives one, whole.
func TestWireGivesWholeRecords(t *testing.T) {
	var train []byte
	var want [][]byte
	for i, length := range []int{1, 0, 17, 5, 4, 30, 2} {
		want = append(want, record(byte(20+i%4), i, length))
		train = append(train, want[i]...)
	}
	try := func(t *testing.T, pieces [][]byte) {
		t.Helper()
		wire, peer := wirePair(t)
		got := make(chan error, 1)
		go func() {
			b := make([]byte, 1<<16)
			for i, r := range want {
				n, err := wire.Read(b)
				if err != nil || !bytes.Equal(b[:n], r) {
					got <- fmt.Errorf("record %d is %x, %w; want %x", i, b[:n], err, r)
					return
				}
			}
			_, err := wire.Read(b)
			got <- err
		}()
		for _, piece := range pieces {
			if _, err := peer.Write(piece); err != nil {
				t.Fatal(err)
			}
			consumed(t, wire.TCPConn)
		}
		peer.CloseWrite()
		if err := <-got; err != io.EOF {
			t.Error(err)
		}
	}
	for cut := range len(train) + 1 {
		try(t, [][]byte{train[:cut], train[cut:]})
	}
	for size := 1; size < 8; size++ {
		var pieces [][]byte
		for at := 0; at < len(train); at += size {
			pieces = append(pieces, train[at:min(at+size, len(train))])
		}
		try(t, pieces)
	}
}

// TestWireGivesPartsToSmallReads: TLS may ask for the head of a record first.
func TestWireGivesPartsToSmallReads(t *testing.T) {
	wire, peer := wirePair(t)
	r := record(23, 7, 100)
	peer.Write(bytes.Repeat(r, 3))
	for range 3 {
		for _, size := range []int{1, 4, 60, 40} {
			b := make([]byte, size)
			if n, err := io.ReadFull(wire, b); err != nil {
				t.Fatalf("%d of %d: %v", n, size, err)
			}
		}
	}
}

// TestLargestRecords: what TLS 1.3 allows at most is given whole, a thousand in a
// row, and nothing is mixed up where the buffer wraps.
func TestLargestRecords(t *testing.T) {
	wire, peer := wirePair(t)
	const n = 1000
	go func() {
		for i := range n {
			peer.Write(record(23, i, maxRecord-recordHead-i%3))
		}
		peer.Close()
	}()
	b := make([]byte, 1<<16)
	for i := range n {
		got, err := wire.Read(b)
		if err != nil || !bytes.Equal(b[:got], record(23, i, maxRecord-recordHead-i%3)) {
			t.Fatalf("record %d: %d bytes, %v", i, got, err)
		}
	}
	if _, err := wire.Read(b); err != io.EOF {
		t.Error(err)
	}
}

// TestHalfRecordsHoldNoMore: two thousand connections on which half a record has
// come, and no more comes, hold that half and not a buffer each.
func TestHalfRecordsHoldNoMore(t *testing.T) {
	const connections, size = 2000, 16 << 10
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 3*connections {
		t.Fatalf("%d open files are too few: %v", limit.Cur, err)
	}
	var wires []*Wire
	var peers []*net.TCPConn
	for range connections {
		wire, peer := wirePair(t)
		wires, peers = append(wires, wire), append(peers, peer)
	}
	before := heap()
	var reading sync.WaitGroup
	for i, wire := range wires {
		reading.Go(func() {
			b := make([]byte, 64)
			n, err := io.ReadFull(wire, b)
			if err != nil || !bytes.Equal(b[recordHead:], bytes.Repeat([]byte{byte(i)}, n-recordHead)) {
				t.Errorf("connection %d: %x, %v", i, b[:n], err)
			}
		})
	}
	for i, peer := range peers {
		peer.Write(record(23, i, size)[:size/2])
	}
	for _, wire := range wires {
		consumed(t, wire.TCPConn)
	}
	grown := heap() - before
	t.Logf("%d bytes a connection, for %d that have come", grown/connections, size/2)
	if grown > connections*(size/2+2<<10) {
		t.Errorf("%d half records of %d bytes cost %d KiB", connections, size/2, grown>>10)
	}
	for i, peer := range peers {
		peer.Write(record(23, i, size)[size/2:])
	}
	reading.Wait()
}

// heap is what is in use once nothing more can be collected, pools included.
func heap() int {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestGarbageFailsAtOnce: what is no TLS is handed to TLS, which says so, and
// nobody waits for a record's end that never comes.
func TestGarbageFailsAtOnce(t *testing.T) {
	config := &tls.Config{InsecureSkipVerify: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("no certificate")
	}}
	for name, garbage := range map[string][]byte{
		"HTTP":                    []byte("GET / HTTP/1.1\r\n"),
		"SSH":                     []byte("SSH-2.0-OpenSSH_9.2p1\r\n"),
		"zeros":                   make([]byte, 5),
		"a record beyond any":     {22, 3, 1, 0xff, 0xff, 1},
		"a record of version 16":  {22, 16, 1, 0, 100, 1},
		"HTTP/2 without TLS":      []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		"a record of kind 24":     {24, 3, 3, 0, 3},
		"a handshake that is not": append([]byte{22, 3, 1, 0, 4}, 9, 9, 9, 9),
	} {
		for side, handshake := range map[string]func(*Wire) error{
			"server": func(w *Wire) error { return tls.Server(w, config).Handshake() },
			"client": func(w *Wire) error { return tls.Client(w, config).Handshake() },
		} {
			t.Run(name+", "+side, func(t *testing.T) {
				wire, peer := wirePair(t)
				peer.Write(garbage) // and the connection stays open
				failed := make(chan error, 1)
				go func() { failed <- handshake(wire) }()
				select {
				case err := <-failed:
					if err == nil {
						t.Error("a handshake with garbage")
					}
				case <-time.After(2 * time.Second):
					t.Error("waits")
				}
			})
		}
	}
}

// TestWireDeadline: it wakes who waits, and takes nothing of what has come.
func TestWireDeadline(t *testing.T) {
	wire, peer := wirePair(t)
	r := record(23, 1, 1000)
	peer.Write(r[:600])
	b := make([]byte, 1<<16)
	for range 3 {
		wire.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := wire.Read(b); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	wire.SetReadDeadline(time.Time{})
	peer.Write(r[600:])
	if n, err := wire.Read(b); err != nil || !bytes.Equal(b[:n], r) {
		t.Errorf("after the deadline was lifted: %d bytes, %v", n, err)
	}
}

// TestWireEndsInARecord: that is not the end of what was sent.
func TestWireEndsInARecord(t *testing.T) {
	r := record(23, 1, 100)
	for _, length := range []int{1, 4, 5, 6, len(r) - 1} {
		wire, peer := wirePair(t)
		peer.Write(append(r, r[:length]...))
		peer.CloseWrite()
		b := make([]byte, 1<<10)
		if n, err := wire.Read(b); err != nil || !bytes.Equal(b[:n], r) {
			t.Errorf("the whole record: %d bytes, %v", n, err)
		}
		for range 2 {
			if n, err := wire.Read(b); n > 0 || err != io.ErrUnexpectedEOF {
				t.Errorf("%d bytes of a record, then the end: %d, %v", length, n, err)
			}
		}
	}
}

// TestWireReset: what has come whole is still given, then the error.
func TestWireReset(t *testing.T) {
	wire, peer := wirePair(t)
	peer.SetLinger(0)
	peer.Close()
	if _, err := wire.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}

// TestBatch: writes wait for Flush, then go in one segment and in order; before
// there is a tunnel, and after, they wait for nothing.
func TestBatch(t *testing.T) {
	wire, peer := wirePair(t)
	got := func(n int) string {
		t.Helper()
		peer.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, n)
		if _, err := io.ReadFull(peer, b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	wire.Write([]byte("direct"))
	if s := got(6); s != "direct" {
		t.Error(s)
	}
	wire.batch()
	var want bytes.Buffer
	for i := range 100 {
		b := fmt.Appendf(nil, "write %d;", i)
		want.Write(b)
		if n, err := wire.Write(b); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		clear(b) // it is the caller's again
	}
	if n := wire.unflushed(); n != want.Len() {
		t.Errorf("%d wait, want %d", n, want.Len())
	}
	time.Sleep(20 * time.Millisecond)
	if n := unread(t, peer); n > 0 {
		t.Errorf("%d bytes went before Flush", n)
	}
	before := segments(t, wire.TCPConn)
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	if s := got(want.Len()); s != want.String() {
		t.Errorf("%q", s)
	}
	if n := segments(t, wire.TCPConn) - before; n != 1 {
		t.Errorf("%d segments", n)
	}
	if n := wire.unflushed(); n != 0 {
		t.Errorf("%d still wait", n)
	}
	wire.Write([]byte("last"))
	if err := wire.unbatch(); err != nil {
		t.Fatal(err)
	}
	wire.Write([]byte(" words"))
	if s := got(10); s != "last words" {
		t.Error(s)
	}
}

// segments is how many segments with data conn has sent.
func segments(t *testing.T, conn *net.TCPConn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Data_segs_out)
		}
	}), err)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFlushersKeepTheOrder: whoever flushes, and however many at a time.
func TestFlushersKeepTheOrder(t *testing.T) {
	wire, peer := wirePair(t)
	wire.batch()
	const n = 200_000
	var writing sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		writing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					wire.Flush()
				}
			}
		})
	}
	go func() {
		for i := range n {
			wire.Write(binary.BigEndian.AppendUint32(nil, uint32(i)))
		}
		close(stop)
		writing.Wait()
		wire.Flush()
		wire.CloseWrite()
	}()
	all, err := io.ReadAll(peer)
	if err != nil || len(all) != 4*n {
		t.Fatalf("%d bytes, %v", len(all), err)
	}
	for i := range n {
		if got := binary.BigEndian.Uint32(all[4*i:]); got != uint32(i) {
			t.Fatalf("%d comes where %d was due", got, i)
		}
	}
}
