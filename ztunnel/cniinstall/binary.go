package cniinstall

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/ztunnel/atomicfile"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// copyPlugin has the plugin's binary in the folder of CNI plugins. A copy that
// is there and the same, as its stamp tells after the first look, is left.
func (i *Installer) copyPlugin() error {
	target := filepath.Join(i.config.BinDir, cniproto.PluginType)
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
		if err := atomicfile.Write(target, plugin, pluginMode); err != nil {
			return err
		}
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

// pluginMode: container runtimes may run as another user.
const pluginMode fs.FileMode = 0o755

func (i *Installer) isCopy(there fs.FileInfo) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.copied != nil && os.SameFile(i.copied, there) &&
		i.copied.Size() == there.Size() && i.copied.ModTime().Equal(there.ModTime()) && i.copied.Mode() == there.Mode()
}
