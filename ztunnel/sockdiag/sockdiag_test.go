package sockdiag

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

// loopback makes the test's namespace, which is empty, reach itself.
func loopback(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// connect returns both ends of a connection to a listener at address, in the test's namespace.
func connect(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	loopback(t)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func of(t *testing.T, local, remote net.Addr) Socket {
	t.Helper()
	all, err := List(Connected...)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Local == local.(*net.TCPAddr).AddrPort() && s.Remote == remote.(*net.TCPAddr).AddrPort() {
			return s
		}
	}
	t.Fatalf("no socket %s -> %s in %v", local, remote, all)
	return Socket{}
}

func TestSocketsAreWhatTheirProcessesSee(t *testing.T) {
	for _, c := range []struct{ network, address string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}} {
		client, _ := connect(t, c.network, c.address)
		s := of(t, client.LocalAddr(), client.RemoteAddr())
		raw, err := client.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			cookie, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil || s.Cookie != cookie {
				t.Errorf("cookie %d, want %d, %v", s.Cookie, cookie, err)
			}
			var stat unix.Stat_t
			if err := unix.Fstat(int(fd), &stat); err != nil || uint64(s.Inode) != stat.Ino {
				t.Errorf("inode %d, want %d, %v", s.Inode, stat.Ino, err)
			}
		})
		var cgroup unix.Stat_t
		if err := errors.Join(err, unix.Stat(netnstest.Cgroup(), &cgroup)); err != nil {
			t.Fatal(err)
		}
		if s.State != Established || s.Mark != 0 || s.Cgroup != cgroup.Ino {
			t.Errorf("%+v, want it established in cgroup %d", s, cgroup.Ino)
		}
		if err := raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0x77); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if s := of(t, client.LocalAddr(), client.RemoteAddr()); s.Mark != 0x77 {
			t.Errorf("mark %#x, want 0x77", s.Mark)
		}
	}
}

func TestTagsAreThoseOfTheMap(t *testing.T) {
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC, Key: number, Value: number,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client, _ := connect(t, "tcp4", "127.0.0.1:0")
	raw, err := client.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = m.Put(uint32(fd), uint32(7)) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	all, err := ListTagged(m.FD(), Connected...)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	for _, s := range all {
		var want []byte
		if s.Local == client.LocalAddr().(*net.TCPAddr).AddrPort() {
			want = []byte{7, 0, 0, 0}
		}
		if !bytes.Equal(s.Tag, want) {
			t.Errorf("%s -> %s: tag %v, want %v", s.Local, s.Remote, s.Tag, want)
		}
	}
}

func TestListenersAreListed(t *testing.T) {
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all, err := List(Listening)
	if err != nil || len(all) != 1 || all[0].Local != l.Addr().(*net.TCPAddr).AddrPort() || all[0].Remote.Port() != 0 {
		t.Errorf("listening: %+v, %v", all, err)
	}
}

func TestDestroyEndsOneConnection(t *testing.T) {
	for _, c := range []struct{ network, address string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp4", "[::]:0"}} {
		client, server := connect(t, c.network, c.address)
		other, _ := connect(t, c.network, c.address)
		s, stays := of(t, client.LocalAddr(), client.RemoteAddr()), of(t, other.LocalAddr(), other.RemoteAddr())
		if lives, err := s.Lives(); err != nil || !lives {
			t.Errorf("lives: %v, %v", lives, err)
		}
		if err := s.Destroy(); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("who uses it gets %v, want it aborted", err)
		}
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("its peer gets %v, want a reset", err)
		}
		if lives, err := s.Lives(); err != nil || lives {
			t.Errorf("lives on: %v, %v", lives, err)
		}
		if err := s.Destroy(); err != nil {
			t.Errorf("ended twice: %v", err)
		}
		if lives, err := stays.Lives(); err != nil || !lives {
			t.Errorf("another: lives %v, %v", lives, err)
		}
		// The mapped address of a server's socket too.
		peer := of(t, other.RemoteAddr(), other.LocalAddr())
		if lives, err := peer.Lives(); err != nil || !lives {
			t.Errorf("its peer: lives %v, %v", lives, err)
		}
		if err := peer.Destroy(); err != nil {
			t.Error(err)
		}
		other.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := other.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the peer of an ended server's socket: %v", err)
		}
	}
}

func TestParseRefusesWhatIsShort(t *testing.T) {
	for n := range messageSize {
		if _, err := parse(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are a socket", n)
		}
	}
	if s, err := parse(make([]byte, messageSize)); err != nil || s.Local != netip.MustParseAddrPort("[::]:0") {
		t.Errorf("%+v, %v", s, err)
	}
}
