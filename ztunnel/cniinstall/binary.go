package cniinstall

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// copyPlugin has the plugin's binary in the folder of CNI plugins. A copy that
// is there and the same, as its stamp tells after the first look, is left.
func (i *Installer) copyPlugin(now time.Time) error {
	target := i.target()
	there, err := os.Stat(target)
	if err == nil && i.isCopy(there) {
		return nil
	}
	plugin, err := os.ReadFile(i.config.Plugin)
	if err != nil {
		return err
	}
	present, err := os.ReadFile(target)
	if err != nil || !bytes.Equal(present, plugin) || there == nil || there.Mode().Perm() != pluginMode {
		if err := i.restoring(&i.binary, now, target); err != nil {
			return err
		}
		if err := atomicfile.Write(target, plugin, pluginMode); err != nil {
			return err
		}
		i.restored(&i.binary, now, target)
	}
	there, err = os.Stat(target)
	if err != nil {
		return fmt.Errorf("copy plugin: %w", err)
	}
	i.mu.Lock()
	i.copied = there
	i.mu.Unlock()
	return nil
}

// target is where the plugin's binary belongs.
func (i *Installer) target() string { return filepath.Join(i.config.BinDir, cniproto.PluginType) }

// pluginMode: container runtimes may run as another user.
const pluginMode fs.FileMode = 0o755

func (i *Installer) isCopy(there fs.FileInfo) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.copied != nil && os.SameFile(i.copied, there) &&
		i.copied.Size() == there.Size() && i.copied.ModTime().Equal(there.ModTime()) && i.copied.Mode() == there.Mode() &&
		changeTime(i.copied) == changeTime(there)
}

// changeTime cannot be set back by whoever writes to a file.
func changeTime(info fs.FileInfo) syscall.Timespec {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ctim
	}
	return syscall.Timespec{}
}
