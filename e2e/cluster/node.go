package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// runNode starts what runs pods.
func (a *agent) runNode(ctx context.Context) error {
	const group = "system"
	containerd := []string{"containerd", "--config", "/etc/containerd/config.toml"}
	if err := a.start(ctx, service{"containerd", group, containerd}); err != nil {
		return err
	}
	if err := waitFor("containerd", time.Minute, containerdAnswers); err != nil {
		return err
	}
	if err := a.importImages(ctx); err != nil {
		return err
	}
	if err := a.waitForAPI(ctx, a.machine.name); err != nil {
		return err
	}
	// The kubelet has a group of its own, so that a pod's processes and it can
	// be told apart by cgroup.
	if err := a.start(ctx, service{"kubelet", "kubelet", kubeletArgs(a.machine)}); err != nil {
		return err
	}
	proxy := []string{"kube-proxy", "--config=" + configFile("kube-proxy.yaml")}
	if err := a.start(ctx, service{"kube-proxy", group, proxy}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func kubeletArgs(m machine) []string {
	return []string{"kubelet",
		"--config=" + configFile("kubelet.yaml"),
		"--kubeconfig=" + configFile("kubelet.kubeconfig"),
		"--hostname-override=" + m.name,
		fmt.Sprintf("--node-ip=%s,%s", m.address4(), m.address6()),
		"--node-labels=topology.kubernetes.io/region=lab,topology.kubernetes.io/zone=" + m.zone(),
	}
}

func containerdAnswers() bool {
	conn, err := net.Dial("unix", containerdSocket)
	if err != nil {
		return false
	}
	conn.Close()
	return exec.Command("ctr", "version").Run() == nil
}

// importedFolder remembers which tars containerd has: one file per tar, with
// its hash inside.
const importedFolder = "/var/lib/imported-images"

// importImages gives containerd the tars that it does not have yet.
func (a *agent) importImages(ctx context.Context) error {
	tars, err := filepath.Glob(filepath.Join(machineImages, "*.tar"))
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, tar := range tars {
		began := time.Now()
		imported, err := importImage(ctx, tar, filepath.Join(importedFolder, filepath.Base(tar)), ctrImport)
		if err != nil {
			return err
		}
		if imported {
			a.log.Info("image imported", "tar", filepath.Base(tar), "after", time.Since(began))
		}
	}
	return nil
}

func ctrImport(ctx context.Context, tar string) error {
	if output, err := exec.CommandContext(ctx, "ctr", "--namespace=k8s.io", "images", "import", tar).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr images import: %w\n%s", err, output)
	}
	return nil
}

// importImage imports one tar, unless the record says that it is there.
func importImage(ctx context.Context, tar, record string, load func(context.Context, string) error) (imported bool, err error) {
	hash, err := fileHash(tar)
	if err != nil {
		return false, err
	}
	known, err := os.ReadFile(record)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read record of imported images: %w", err)
	}
	if string(known) == hash {
		return false, nil
	}
	if err := load(ctx, tar); err != nil {
		return false, fmt.Errorf("import %s: %w", filepath.Base(tar), err)
	}
	return true, replaceFile(record, []byte(hash), 0o644)
}

func fileHash(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", filepath.Base(path), err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("hash %s: %w", filepath.Base(path), err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
