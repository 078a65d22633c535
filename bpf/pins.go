package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pinnedMaps outlive the process. The listeners do not, nor what they are told: they end with it.
var pinnedMaps = []string{
	guardMapMeshClasses, guardMapMeshEgress, guardMapMeshEnrolled, guardMapMeshGuards, guardMapMeshNames, guardMapMeshNode,
	guardMapMeshOwn, guardMapMeshPermits, guardMapMeshPods, guardMapMeshPrecapture, guardMapMeshRanges, guardMapMeshTried, guardMapMeshTriedRest,
	guardMapMeshTryNames, guardMapMeshTryRanges, guardMapMeshTunnelled, guardMapMeshVerdicts,
}

// bind has the maps live as long as the program is attached, though it uses few of them: Adopt finds them by it.
func (n *Node) bind(program *ebpf.Program) error {
	for _, name := range pinnedMaps {
		if err := program.BindMap(n.maps[name]); err != nil {
			return fmt.Errorf("bind %s to connect: %w", name, err)
		}
	}
	return nil
}

// Repin pins what Load pinned, where it is not: the BPF file system was another one then.
func (n *Node) Repin(dir string) error {
	for _, name := range pinnedMaps {
		if err := pinCopy(n.maps[name], filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// pinCopy pins by another descriptor: a Map believes to be pinned where it once was.
func pinCopy(m *ebpf.Map, path string) error {
	another, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map: %w", err)
	}
	defer another.Close()
	if err := another.Pin(path); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("pin map at %s: %w", path, err)
	}
	return nil
}

// Adopt pins the maps of a connect program that an earlier process of the node attached, if its pins are lost: to the folder of
// its layout, which dir tells. A program of another node is left alone; host is the cookie of this one's network namespace.
func Adopt(program *ebpf.Program, host uint64, dir func(layout uint32) string) error {
	maps, err := boundMaps(program)
	defer func() {
		for _, m := range maps {
			m.Close()
		}
	}()
	if err != nil {
		return fmt.Errorf("adopt what is attached: %w", err)
	}
	node, ok := maps[connectMapMeshNode]
	if !ok || node.ValueSize() < nodePrefix {
		return nil // of a layout from before this map
	}
	owner, layout, err := readOwner(node)
	if err != nil || owner != host {
		return err
	}
	folder := dir(layout)
	if _, err := os.Stat(filepath.Join(folder, connectMapMeshNode)); !errors.Is(err, fs.ErrNotExist) {
		return err // pinned
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("adopt what is attached: %w", err)
	}
	for name, m := range maps {
		if name == connectMapMeshNode {
			continue // last: it tells that all are there
		}
		if err := pinCopy(m, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return pinCopy(node, filepath.Join(folder, connectMapMeshNode))
}

// readOwner reads the fields of struct node that every layout has at the same place.
func readOwner(node *ebpf.Map) (host uint64, layout uint32, err error) {
	value := make([]byte, node.ValueSize())
	if err := node.Lookup(uint32(0), &value); err != nil {
		return 0, 0, fmt.Errorf("read whose maps are attached: %w", err)
	}
	return binary.NativeEndian.Uint64(value), binary.NativeEndian.Uint32(value[unsafe.Offsetof(connectNode{}.Layout):]), nil
}

// nodePrefix is how long struct node is at least, in every layout.
const nodePrefix = uint32(unsafe.Offsetof(connectNode{}.Layout) + unsafe.Sizeof(connectNode{}.Layout))

// boundMaps opens the maps of a program that are pinned.
func boundMaps(program *ebpf.Program) (map[string]*ebpf.Map, error) {
	about, err := program.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := about.MapIDs()
	maps := map[string]*ebpf.Map{}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return maps, err
		}
		about, err := m.Info()
		if err != nil || !slices.Contains(pinnedMaps, about.Name) || maps[about.Name] != nil {
			m.Close()
			if err != nil {
				return maps, err
			}
			continue
		}
		maps[about.Name] = m
	}
	return maps, nil
}
