package podns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// A Candidate is a network namespace found in a folder. It may be gone by the time it is opened.
type Candidate struct {
	Path   string
	Inode  uint64
	Cookie uint64
	Addrs  []netip.Addr // as Addrs returns them
}

// Scan returns the network namespaces in a folder in which a container runtime keeps them, such as /run/netns. A file that
// is none, or that goes away meanwhile, is passed over.
func Scan(dir string) ([]Candidate, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // made with the first namespace
	}
	if err != nil {
		return nil, fmt.Errorf("scan for network namespaces: %w", err)
	}
	var found []Candidate
	for _, entry := range entries {
		candidate, err := examine(filepath.Join(dir, entry.Name()))
		if errors.Is(err, ErrNotNetNS) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("scan for network namespaces: %w", err)
		}
		found = append(found, candidate)
	}
	return found, nil
}

func examine(path string) (Candidate, error) {
	ns, err := Open(path)
	if err != nil {
		return Candidate{}, err
	}
	defer ns.Close()
	addrs, err := ns.Addrs()
	if err != nil {
		return Candidate{}, err
	}
	return Candidate{Path: path, Inode: ns.Inode(), Cookie: ns.Cookie(), Addrs: addrs}, nil
}
