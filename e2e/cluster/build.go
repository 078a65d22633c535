package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// program is one binary that a Go module gives us.
type program struct {
	importPath string
	name       string // what it is called in the cache
}

var kubernetesPrograms = []program{
	{"go.etcd.io/etcd/server/v3", "etcd"},
	{"k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"},
	{"k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"},
	{"k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"},
	{"k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"},
	{"k8s.io/kubernetes/cmd/kubectl", "kubectl"},
	{"k8s.io/kubernetes/cmd/kubelet", "kubelet"},
}

var corednsPrograms = []program{{"github.com/coredns/coredns", "coredns"}}

// build fills the cache folder of the pinned versions, unless it is there.
// The folder appears complete, by one rename, or not at all.
func (c *cluster) build(ctx context.Context) error {
	p := newProgress(c.out)
	top := filepath.Join(c.cacheTop, "cluster")
	if err := os.MkdirAll(top, 0o755); err != nil {
		return fmt.Errorf("make cache folder: %w", err)
	}
	unlock, err := lockCache(top)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(c.cache()); err == nil {
		return c.linkKubectl()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for built binaries: %w", err)
	}
	if err := removeHalfBuilt(top); err != nil {
		return err
	}
	staging, err := os.MkdirTemp(top, halfBuilt)
	if err != nil {
		return fmt.Errorf("make build folder: %w", err)
	}
	defer os.RemoveAll(staging)
	if err := c.buildInto(ctx, p, staging); err != nil {
		return err
	}
	if err := os.Chmod(staging, 0o755); err != nil {
		return fmt.Errorf("open build folder to readers: %w", err)
	}
	if err := os.Rename(staging, c.cache()); err != nil {
		return fmt.Errorf("put built binaries in place: %w", err)
	}
	p.done("built into " + c.cache())
	return c.linkKubectl()
}

// halfBuilt starts the name of a folder whose build has not ended.
const halfBuilt = ".building-"

// removeHalfBuilt removes what a build that was killed left behind; nobody
// else is building while we hold the lock.
func removeHalfBuilt(top string) error {
	left, err := filepath.Glob(filepath.Join(top, halfBuilt+"*"))
	if err != nil {
		return fmt.Errorf("look for half-built folders: %w", err)
	}
	for _, folder := range left {
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("remove half-built folder: %w", err)
		}
	}
	return nil
}

func lockCache(top string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(top, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open cache lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("take cache lock: %w", err)
	}
	return func() { file.Close() }, nil
}

func (c *cluster) buildInto(ctx context.Context, p *progress, staging string) error {
	bin := filepath.Join(staging, "bin")
	steps := []struct {
		what, module, ldflags string
		programs              []program
	}{
		{"Kubernetes " + c.versions.kubernetes + " and etcd " + c.versions.etcd, c.module(), c.versions.kubernetesStamp(), kubernetesPrograms},
		{"CoreDNS " + c.versions.coredns, filepath.Join(c.module(), "coredns"), "-s -w", corednsPrograms},
		{"programs for images", c.module(), "-s -w", ownPrograms},
	}
	for _, step := range steps {
		p.start("building " + step.what)
		stop := p.watch()
		err := c.goBuild(ctx, p, step.module, bin, step.ldflags, step.programs)
		stop()
		if err != nil {
			return fmt.Errorf("build %s: %w", step.what, err)
		}
		p.done("built " + step.what)
	}
	return writeImages(bin, filepath.Join(staging, "images"))
}

// goBuild builds programs of one module in one go, so that the compiler can
// use all cores until the last link.
func (c *cluster) goBuild(ctx context.Context, p *progress, module, bin, ldflags string, programs []program) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make folder for binaries: %w", err)
	}
	var paths []string
	for _, program := range programs {
		paths = append(paths, program.importPath)
	}
	total, err := c.countPackages(ctx, module, paths)
	if err != nil {
		return err
	}
	args := append([]string{"build", "-v", "-trimpath", "-ldflags", ldflags, "-o", bin + "/"}, paths...)
	cmd := c.goCommand(ctx, module, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("open compiler's output: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go build: %w", err)
	}
	complaints := followBuild(stderr, total, p)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, strings.TrimSpace(complaints))
	}
	for _, program := range programs {
		// The go command names a binary after the last element of its import
		// path, or the one before a version suffix: etcd's is called server.
		built := path.Base(program.importPath)
		if built == "v3" {
			built = path.Base(path.Dir(program.importPath))
		}
		if built == program.name {
			continue
		}
		if err := os.Rename(filepath.Join(bin, built), filepath.Join(bin, program.name)); err != nil {
			return fmt.Errorf("name binary: %w", err)
		}
	}
	return nil
}

// followBuild counts the packages that `go build -v` names as it compiles
// them, and returns every other line: the compiler's complaints.
func followBuild(stderr io.Reader, total int, p *progress) string {
	var complaints strings.Builder
	compiled := 0
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || strings.ContainsAny(line, " \t#") {
			if !strings.HasPrefix(line, "go: downloading ") {
				fmt.Fprintln(&complaints, line)
			}
			continue
		}
		compiled++
		p.update(fmt.Sprintf("%d of %d packages", compiled, total))
	}
	return complaints.String()
}

// countPackages says how many packages a build with an empty cache compiles.
func (c *cluster) countPackages(ctx context.Context, module string, paths []string) (int, error) {
	cmd := c.goCommand(ctx, module, append([]string{"list", "-deps"}, paths...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	list, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("list packages: %w\n%s", err, strings.TrimSpace(complaints.String()))
	}
	return bytes.Count(list, []byte("\n")), nil
}

// goCommand runs the go client in a module, with static binaries as result,
// and with the toolchain that the modules name, whatever the host prefers.
func (c *cluster) goCommand(ctx context.Context, module string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOTOOLCHAIN="+c.versions.toolchain, "GOFLAGS=-buildvcs=false -mod=readonly")
	return cmd
}

// linkKubectl puts kubectl where people look for it: bin/ of the checkout.
func (c *cluster) linkKubectl() error {
	link := filepath.Join(c.checkout, "bin/kubectl")
	if target, err := os.Readlink(link); err == nil && target == c.binary("kubectl") {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("make bin folder: %w", err)
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace bin/kubectl: %w", err)
	}
	if err := os.Symlink(c.binary("kubectl"), link); err != nil {
		return fmt.Errorf("link bin/kubectl: %w", err)
	}
	return nil
}
