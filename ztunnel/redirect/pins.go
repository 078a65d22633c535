package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// layout is the version of what is pinned. It changes whenever a map's key, value or meaning does: processes of different
// layouts leave each other's pins alone, and enforce side by side until every pod has been captured anew.
const layout = 4

// layoutPins is the folder of a layout.
func layoutPins(dir string, layout uint32) pins {
	return pins(filepath.Join(dir, fmt.Sprintf("v%d", layout)))
}

// enrolledMap is the map of captured pods in every layout: namespace cookie (64 bits) -> anything.
const enrolledMap = "mesh_enrolled"

// guardsMap is the map of what may leave pods, by the same key, in the layouts that have it.
const guardsMap = "mesh_guards"

// verdictsMap is one that all programs of a layout use, and no others.
const verdictsMap = "mesh_verdicts"

// egressMap is the map of whose way out of the mesh is denied, by the same key, in the layouts that have it.
const egressMap = "mesh_egress"

// What is pinned of a pod: the link of steer, and those of hold and of DNS, whose names go on with the cookie of the pod's
// namespace: such a link knows its device's number, which is no namespace's own. That of DNS goes on with this number.
const (
	steerPin = "steer"
	holdPin  = "hold-"
	dnsPin   = "dns-"
)

// pins is the folder of one layout:
//
//	maps/NAME        what all programs share
//	links/NAME       the node's programs, in layouts before the second: since then they stay without a link (hook.go)
//	pods/UID/...     a pod's programs
type pins string

func (p pins) maps() string          { return filepath.Join(string(p), "maps") }
func (p pins) links() string         { return filepath.Join(string(p), "links") }
func (p pins) pods() string          { return filepath.Join(string(p), "pods") }
func (p pins) pod(uid string) string { return filepath.Join(p.pods(), uid) }

func (p pins) make() error {
	for _, dir := range []string{p.maps(), p.pods()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return explain("The folder for pins cannot be made.", err)
		}
	}
	return nil
}

// uids lists the pods that have a folder.
func (p pins) uids() ([]string, error) {
	entries, err := os.ReadDir(p.pods())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pinned pods: %w", err)
	}
	uids := make([]string, len(entries))
	for i, e := range entries {
		uids[i] = e.Name()
	}
	return uids, nil
}

// removePod ends what is pinned for a pod, which need not exist.
func (p pins) removePod(uid string) error {
	if err := detachAll(p.pod(uid)); err != nil {
		return fmt.Errorf("remove pins of pod %s: %w", uid, err)
	}
	return nil
}

// detachAll detaches the links pinned in a folder, which need not exist, and removes it. To remove a pin alone would not do:
// the kernel detaches later, when it gets round to it, and another process may hold the link.
func detachAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list pinned links: %w", err)
	}
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			return fmt.Errorf("load pinned link: %w", err)
		}
		err = l.Detach()
		l.Close()
		if err != nil {
			return fmt.Errorf("detach pinned link %s: %w", e.Name(), err)
		}
	}
	return os.RemoveAll(dir)
}

// replacePin puts l at path in one step, whatever was there.
func replacePin(l link.Link, path string) error {
	next := path + "-next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := l.Pin(next); err != nil {
		return fmt.Errorf("pin link at %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("pin link at %s: %w", path, err)
	}
	return nil
}

// adopt updates the link pinned at path to program, in one step, if it is attached where it should be. It returns nil if
// there is no such link: none is pinned, or what it was attached to is another or gone.
func adopt(path string, program *ebpf.Program, attachedTo func(*link.Info) bool) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load pinned link %s: %w", path, err)
	}
	about, err := l.Info()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("read pinned link %s: %w", path, err)
	}
	if !attachedTo(about) {
		l.Close()
		return nil, nil
	}
	if err := l.Update(program); err != nil {
		l.Close()
		if errors.Is(err, unix.ENOLINK) {
			return nil, nil
		}
		return nil, fmt.Errorf("update pinned link %s: %w", path, err)
	}
	return l, nil
}

// attachPod runs program for new connections in a network namespace, adopting the link that an earlier process pinned.
func (p pins) attachPod(uid string, netns *podns.NetNS, program *ebpf.Program) (_ link.Link, adopted bool, err error) {
	path := filepath.Join(p.pod(uid), steerPin)
	if err := os.MkdirAll(p.pod(uid), 0o700); err != nil {
		return nil, false, fmt.Errorf("make folder for pins of pod %s: %w", uid, err)
	}
	l, err := adopt(path, program, func(about *link.Info) bool {
		n := about.NetNs()
		return n != nil && uint64(n.NetnsInode) == netns.Inode()
	})
	if l != nil || err != nil {
		return l, l != nil, err
	}
	var attached link.Link
	err = netns.Control(func(fd int) (err error) {
		attached, err = link.AttachNetNs(fd, program)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("attach steer to network namespace of pod %s: %w", uid, err)
	}
	if err := replacePin(attached, path); err != nil {
		attached.Close()
		return nil, false, err
	}
	return attached, false, nil
}

// otherLayouts returns the pins that processes of other layouts left in dir.
func otherLayouts(dir string) ([]pins, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var others []pins
	for _, e := range entries {
		if e.IsDir() && e.Name() != filepath.Base(string(layoutPins(dir, layout))) && strings.HasPrefix(e.Name(), "v") {
			others = append(others, pins(filepath.Join(dir, e.Name())))
		}
	}
	return others, nil
}

// withdraw ends the capture of what one namespace connects to, in any layout.
func (p pins) withdraw(cookie uint64) error {
	enrolled, err := ebpf.LoadPinnedMap(filepath.Join(p.maps(), enrolledMap), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load %s of %s: %w", enrolledMap, p, err)
	}
	defer enrolled.Close()
	if err := enrolled.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("withdraw namespace %d in %s: %w", cookie, p, err)
	}
	return nil
}

// withdrawAll empties a map by namespace cookie, in any layout; one without that map has nothing to empty.
func (p pins) withdrawAll(name string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.maps(), name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load %s of %s: %w", name, p, err)
	}
	defer m.Close()
	var cookies []uint64
	var cookie uint64
	value := make([]byte, m.ValueSize())
	entries := m.Iterate()
	for entries.Next(&cookie, &value) {
		cookies = append(cookies, cookie)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list %s of %s: %w", name, p, err)
	}
	for _, cookie := range cookies {
		if err := m.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("withdraw namespace %d of %s in %s: %w", cookie, name, p, err)
		}
	}
	return nil
}
