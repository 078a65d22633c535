package dns

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// maxServers are as many as resolv.conf(5) has.
	maxServers = 3
	// rereadEvery is how soon a change of the file is noticed.
	rereadEvery = 5 * time.Second
	// maxConfig is more than any such file has.
	maxConfig = 64 << 10
)

// File is a resolv.conf(5), read anew when it changes. Its methods may be called concurrently.
type File struct {
	path   string
	logger *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	looked  time.Time
	changed time.Time
	servers []netip.AddrPort
	problem error
}

// NewFile makes a File. As long as it cannot be read there are no servers.
func NewFile(path string, logger *slog.Logger) *File { return &File{path: path, logger: logger} }

// Servers are those of the file; of its last good state, if it cannot be read any more.
func (f *File) Servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookLocked()
	return f.servers
}

// Problem is why there are no servers, or not those that the file should have; nil if there is none.
func (f *File) Problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookLocked()
	return f.problem
}

func (f *File) lookLocked() {
	if !f.looked.IsZero() && time.Since(f.looked) < rereadEvery {
		return
	}
	f.looked = time.Now()
	err := f.read()
	if err != nil && (f.problem == nil || f.problem.Error() != err.Error()) {
		f.logger.Error("resolvers not read", "error", err, "servers_of_before", len(f.servers))
	}
	f.problem = err
}

func (f *File) read() error {
	stat, err := os.Stat(f.path)
	if err != nil {
		return fmt.Errorf("read resolvers: %w", err)
	}
	if f.servers != nil && stat.ModTime().Equal(f.changed) {
		return nil
	}
	if stat.Size() > maxConfig {
		return fmt.Errorf("read resolvers: %s has %d bytes", f.path, stat.Size())
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("read resolvers: %w", err)
	}
	servers := parseServers(content)
	if len(servers) == 0 {
		return fmt.Errorf("read resolvers: %s names no nameserver with an address", f.path)
	}
	f.servers, f.changed = servers, stat.ModTime()
	return nil
}

// parseServers reads the lines "nameserver ADDRESS" of resolv.conf(5).
func parseServers(content []byte) (servers []netip.AddrPort) {
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan() && len(servers) < maxServers; {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(fields[1]); err == nil && !ip.IsUnspecified() {
			servers = append(servers, netip.AddrPortFrom(ip.Unmap(), Port))
		}
	}
	return servers
}
