package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debianPackages, each with a file that shows that it is there.
var debianPackages = []struct{ name, file string }{
	{"containerd", "/usr/bin/containerd"},
	{"runc", "/usr/sbin/runc"},
	{"containernetworking-plugins", filepath.Join(cniPlugins, "ptp")},
	{"iproute2", "/usr/bin/ip"},
	{"nftables", "/usr/sbin/nft"},
	{"iptables", "/usr/sbin/iptables"},
	{"conntrack", "/usr/sbin/conntrack"},
	{"ethtool", "/usr/sbin/ethtool"},
	{"tcpdump", "/usr/bin/tcpdump"},
	{"util-linux", "/usr/bin/nsenter"},
}

// cniPlugins is where Debian puts the reference CNI plugins.
const cniPlugins = "/usr/lib/cni"

// ensurePackages installs what is missing.
func ensurePackages(ctx context.Context, p *progress) error {
	var missing []string
	for _, pkg := range debianPackages {
		if _, err := os.Stat(pkg.file); err != nil {
			missing = append(missing, pkg.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	p.start("installing " + strings.Join(missing, " "))
	stop := p.watch()
	defer stop()
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if err := aptGet(ctx, install...); err != nil {
		// The lists may be old or absent; a fresh machine has none.
		if err := aptGet(ctx, "update"); err != nil {
			return err
		}
		if err := aptGet(ctx, install...); err != nil {
			return err
		}
	}
	p.done("installed " + strings.Join(missing, " "))
	return nil
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, output)
	}
	return nil
}
