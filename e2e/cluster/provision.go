package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"golang.org/x/sys/unix"
)

//go:embed templates
var templates embed.FS

// values are what the templates may name.
type values struct {
	Machine                    string
	PodCIDR4, PodCIDR6         string
	ClusterCIDR4, ClusterCIDR6 string
	DNS4, DNS6                 string
	Outside4, Outside6         string
	PauseImage, CoreDNSImage   string
	Machines                   []namedMachine
}

type namedMachine struct{ Name, Address4, Address6 string }

func valuesOf(m machine) values {
	v := values{
		Machine:      m.name,
		ClusterCIDR4: clusterCIDR4, ClusterCIDR6: clusterCIDR6,
		DNS4: dnsService4, DNS6: dnsService6,
		Outside4: outside4, Outside6: outside6,
		PauseImage: pauseImage, CoreDNSImage: corednsImage,
	}
	if m.isNode() {
		v.PodCIDR4, v.PodCIDR6 = m.podCIDR4().String(), m.podCIDR6().String()
	}
	for _, other := range machines() {
		v.Machines = append(v.Machines, namedMachine{other.name, other.address4().String(), other.address6().String()})
	}
	return v
}

func render(name string, v values) ([]byte, error) {
	parsed, err := template.New(name).Option("missingkey=error").ParseFS(templates, "templates/"+name)
	if err != nil {
		return nil, fmt.Errorf("parse template %s: %w", name, err)
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, v); err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return text.Bytes(), nil
}

// provisioned marks a disk that is written completely.
const provisioned = "provisioned"

// provision writes a machine's disk, once: at later starts it is the
// machine's, with whatever was changed there since.
func provision(l layout, m machine) error {
	disk := l.disk(m.name)
	if _, err := os.Stat(filepath.Join(disk, provisioned)); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at disk: %w", err)
	}
	steps := []func() error{
		func() error { return makeFolders(disk) },
		func() error { return writeEtc(disk, m) },
		func() error { return writeCredentials(l, m) },
		func() error { return copyPlugins(filepath.Join(disk, "opt/cni/bin")) },
		func() error { return replaceFile(filepath.Join(disk, provisioned), nil, 0o644) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func makeFolders(disk string) error {
	for _, folder := range []string{"etc", "etc.work", "opt/cni/bin", "opt/kubernetes/bin",
		"var/cache", "var/lib/cni", "var/lib/containerd", "var/lib/etcd", "var/lib/kubelet", "var/log", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(disk, folder), 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	for link, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(disk, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make link: %w", err)
		}
	}
	// etcd refuses a folder that others may read.
	if err := os.Chmod(filepath.Join(disk, "var/lib/etcd"), 0o700); err != nil {
		return fmt.Errorf("close folder: %w", err)
	}
	return nil
}

// writeEtc writes what a machine's /etc has more than the host's.
func writeEtc(disk string, m machine) error {
	etc := etcUpper(disk)
	for _, folder := range []string{"cni", "containerd", "kubernetes"} {
		path := filepath.Join(etc, folder)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		// The host's folder of this name shall not show through.
		if err := unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("hide the host's /etc/%s: %w", folder, err)
		}
	}
	files := map[string]string{"hosts": "hosts", "resolv.conf": "resolv.conf"}
	if m.isNode() {
		files["containerd/config.toml"] = "containerd.toml"
		files["cni/net.d/10-lab.conflist"] = "cni.conflist"
		files["kubernetes/kubelet.yaml"] = "kubelet.yaml"
		files["kubernetes/kube-proxy.yaml"] = "kube-proxy.yaml"
	}
	for path, name := range files {
		text, err := render(name, valuesOf(m))
		if err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(etc, path), text, 0o644); err != nil {
			return err
		}
	}
	if err := replaceFile(filepath.Join(etc, "hostname"), []byte(m.name+"\n"), 0o644); err != nil {
		return err
	}
	machineID := strings.ReplaceAll(newUUID(), "-", "") + "\n"
	return replaceFile(filepath.Join(etc, "machine-id"), []byte(machineID), 0o444)
}

// writeCredentials gives a machine its own certificates, and no other's.
func writeCredentials(l layout, m machine) error {
	folder := filepath.Join(etcUpper(l.disk(m.name)), "kubernetes")
	files := map[string]string{"ca.crt": "ca.crt"}
	kubeconfigs := map[string]string{}
	if m.isNode() {
		files[m.name+".crt"], files[m.name+".key"] = m.name+".crt", m.name+".key"
		files["kubelet.crt"], files["kubelet.key"] = m.name+"-serving.crt", m.name+"-serving.key"
		kubeconfigs["kubelet"], kubeconfigs["kube-proxy"] = m.name, "kube-proxy"
	} else {
		for _, name := range []string{"ca.key", "front-proxy-ca.crt", "service-account.key", "service-account.pub"} {
			files[name] = name
		}
		for _, name := range []string{"apiserver", "apiserver-kubelet-client", "front-proxy-client", "admin"} {
			files[name+".crt"], files[name+".key"] = name+".crt", name+".key"
		}
		kubeconfigs["controller-manager"], kubeconfigs["scheduler"] = "controller-manager", "scheduler"
	}
	for to, from := range files {
		content, err := os.ReadFile(filepath.Join(l.pki(), from))
		if err != nil {
			return fmt.Errorf("read credentials: %w", err)
		}
		if err := replaceFile(filepath.Join(folder, to), content, 0o600); err != nil {
			return err
		}
	}
	for name, holder := range kubeconfigs {
		content, err := newKubeconfig(l.pki(), apiServer(), holder)
		if err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(folder, name+".kubeconfig"), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// copyPlugins gives a machine CNI plugins of its own: a mesh adds its plugin
// to the same folder.
func copyPlugins(folder string) error {
	for _, name := range []string{"bandwidth", "host-local", "loopback", "portmap", "ptp"} {
		content, err := os.ReadFile(filepath.Join(cniPlugins, name))
		if err != nil {
			return fmt.Errorf("read CNI plugin: %w", err)
		}
		if err := replaceFile(filepath.Join(folder, name), content, 0o755); err != nil {
			return err
		}
	}
	return nil
}
