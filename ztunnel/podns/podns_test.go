package podns

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m, nil) }

func open(t testing.TB, path string) *NetNS {
	t.Helper()
	ns, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func TestIdentity(t *testing.T) {
	network := netnstest.New(t, "a")
	pod, other := network.Node("a").Pod("pod"), network.Node("a").Pod("other")
	first, again, another := open(t, pod.Path()), open(t, pod.Path()), open(t, other.Path())
	if first.Cookie() == 0 || first.Cookie() != again.Cookie() || first.Inode() != again.Inode() {
		t.Errorf("one namespace: cookies %d and %d, inodes %d and %d",
			first.Cookie(), again.Cookie(), first.Inode(), again.Inode())
	}
	if first.Cookie() == another.Cookie() || first.Inode() == another.Inode() {
		t.Errorf("two namespaces: cookie %d, inode %d", first.Cookie(), first.Inode())
	}
	if first.Path() != pod.Path() {
		t.Errorf("path %q", first.Path())
	}
}

func TestAddrsAreThoseOfThePod(t *testing.T) {
	network := netnstest.New(t, "a")
	pod := network.Node("a").Pod("pod")
	addrs, err := open(t, pod.Path()).Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []netip.Addr{pod.IPv4, pod.IPv6} {
		if !slices.Contains(addrs, want) {
			t.Errorf("%s is not in %v", want, addrs)
		}
	}
	for _, a := range addrs {
		if a.IsLoopback() || a.Is4In6() || a.Zone() != "" {
			t.Errorf("%s is in %v", a, addrs)
		}
	}
}

// Whatever runs in a namespace, nothing outside notices: threads come home.
func TestDoLeavesNoThreadAway(t *testing.T) {
	network := netnstest.New(t, "a")
	node := network.Node("a")
	namespaces := []*NetNS{open(t, node.Pod("first").Path()), open(t, node.Pod("second").Path())}
	home := namespace(t)
	var running sync.WaitGroup
	for _, ns := range namespaces {
		for range 8 {
			running.Go(func() {
				for range 50 {
					err := ns.Do(func() error {
						if in := namespace(t); in != ns.Inode() {
							t.Errorf("in namespace %d, want %d", in, ns.Inode())
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					if in := namespace(t); in != home {
						t.Errorf("in namespace %d, home is %d", in, home)
					}
				}
			})
		}
	}
	running.Wait()
	wrong := errors.New("wrong")
	if err := namespaces[0].Do(func() error { return wrong }); err != wrong {
		t.Errorf("%v, want the function's error", err)
	}
}

// A namespace that was let go is not entered, nor is whatever has its file descriptor by then.
func TestClosedNamespaceIsNotEntered(t *testing.T) {
	ns := open(t, netnstest.NewNetNS(t).Path())
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, netnstest.NewNetNS(t).Path())
	run := func() error {
		t.Error("entered")
		return nil
	}
	if err := ns.Do(run); err == nil {
		t.Error("Do: no error")
	}
	if err := ns.Control(func(int) error { return run() }); err == nil {
		t.Error("Control: no error")
	}
}

// namespace is the one that the calling thread is in.
func namespace(t testing.TB) uint64 {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		t.Error(err)
	}
	return stat.Ino
}

// A socket that was made in a namespace stays there.
func TestSocketsStayInTheirNamespace(t *testing.T) {
	network := netnstest.New(t, "a")
	pod := network.Node("a").Pod("pod")
	ns := open(t, pod.Path())
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", "[::]:8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte(`{}` + "\n"))
			c.Close()
		}
	}()
	if _, err := network.Node("a").Start().Dial(netip.AddrPortFrom(pod.IPv4, 8080)); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesWhatIsNoNetworkNamespace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		file:                  ErrNotNetNS,
		"/proc/self/ns/mnt":   ErrNotNetNS,
		"/dev/null":           ErrNotNetNS,
		t.TempDir():           ErrNotNetNS,
		"/no/such/namespaces": fs.ErrNotExist,
	} {
		if _, err := Open(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// Scan finds namespaces among what else may lie about in such a folder.
func TestScan(t *testing.T) {
	network := netnstest.New(t, "a")
	dir := t.TempDir()
	want := map[string]*netnstest.Pod{}
	for _, name := range []string{"first", "second"} {
		pod := network.Node("a").Pod(name)
		path := filepath.Join(dir, "cni-"+name)
		if err := os.Symlink(pod.Path(), path); err != nil {
			t.Fatal(err)
		}
		want[path] = pod
	}
	for name, target := range map[string]string{"mount": "/proc/self/ns/mnt", "gone": "/no/such/namespace"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "left-over"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := Scan(dir)
	if err != nil || len(found) != len(want) {
		t.Fatalf("%d found: %v, %v", len(found), found, err)
	}
	for _, c := range found {
		pod, ns := want[c.Path], open(t, c.Path)
		if pod == nil || !slices.Contains(c.Addrs, pod.IPv4) || c.Cookie != ns.Cookie() || c.Inode != ns.Inode() {
			t.Errorf("found %+v", c)
		}
	}
	if found, err := Scan(filepath.Join(dir, "none")); err != nil || found != nil {
		t.Errorf("without the folder: %v, %v", found, err)
	}
}

func BenchmarkDo(b *testing.B) {
	ns := open(b, netnstest.NewNetNS(b).Path())
	for b.Loop() {
		if err := ns.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
