package simulated

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// node is a machine of the mesh: a process namespace, whose first process is
// in the node's network namespace, a cgroup hierarchy, a BPF file system, and a
// folder of pods' network namespaces.
type node struct {
	*topology.Node
	dir    string
	cgroup string
	init   *exec.Cmd
	stdin  io.Closer
}

// Folders of a node, below its dir: those that the manifests mount.
const (
	procDir  = "proc"
	bpfDir   = "sys/fs/bpf"
	netnsDir = "run/netns"
	cniDir   = "etc/cni/net.d"
)

// chain is what a network plugin has left in the node's folder.
// packager is a user who is not root.
const packager = 1001

const chain = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods"}]}`

func newNode(network *topology.Node, dir string) (_ *node, err error) {
	n := &node{Node: network, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	for _, folder := range []string{procDir, bpfDir, netnsDir, cniDir, "opt/cni/bin", "var/lib/ambit", "run/ambit"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, cniDir, "10-pods.conflist"), []byte(chain), 0o644); err != nil {
		return nil, err
	}
	// On some distributions they belong to whoever packed them, and not to root.
	for _, folder := range []string{cniDir, "opt/cni/bin"} {
		if err := os.Chown(filepath.Join(dir, folder), packager, packager); err != nil {
			return nil, err
		}
	}
	if n.cgroup, err = topology.AddCgroup(filepath.Base(filepath.Dir(dir)) + "-" + network.Name); err != nil {
		return nil, err
	}
	if err := mount("bpf", filepath.Join(dir, bpfDir), "bpf", 0, "mode=0700"); err != nil {
		return nil, err
	}
	// Shared, so that containers see the namespaces of pods that come after them.
	netns := filepath.Join(dir, netnsDir)
	if err := mount("netns", netns, "tmpfs", 0, "mode=0755"); err != nil {
		return nil, err
	}
	if err := mount("", netns, "", unix.MS_SHARED, ""); err != nil {
		return nil, err
	}
	return n, n.startInit()
}

// mount mounts below the mesh's folder, with which it goes.
func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// bind mounts a file or a folder where an empty one is made for it; with
// MS_REC, also what is mounted in it.
func bind(source, target string, flags uintptr) error {
	stat, err := os.Stat(source)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(target), 0o755)
	}
	if err == nil && stat.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err == nil {
		err = os.WriteFile(target, nil, 0o755)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return mount(source, target, "", unix.MS_BIND|flags, "")
}

// bindReadOnly is bind, for readers.
func bindReadOnly(source, target string) error {
	if err := bind(source, target, 0); err != nil {
		return err
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// startInit starts the first process of the node's own.
func (n *node) startInit() error {
	procfs := filepath.Join(n.dir, procDir)
	n.init = exec.Command("/proc/self/exe")
	n.init.Env = []string{initVariable + "=" + procfs}
	n.init.Stderr = os.Stderr
	// It ends with its standard input, whatever ends this process. A signal at its
	// parent's death would come when the thread ends that started it.
	n.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	stdout, err := n.init.StdoutPipe()
	if err != nil {
		return err
	}
	if n.stdin, err = n.init.StdinPipe(); err != nil {
		return err
	}
	if err := n.Do(n.init.Start); err != nil {
		return fmt.Errorf("start first process: %w", err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "up\n" {
		return fmt.Errorf("start first process: it said %q (%w)", line, err)
	}
	return nil
}

// close ends all that runs on the node.
func (n *node) close() error {
	var errs []error
	if n.cgroup != "" {
		errs = append(errs, topology.KillCgroup(n.cgroup))
	}
	if n.init != nil && n.init.Process != nil {
		n.stdin.Close()
		n.init.Process.Kill()
		n.init.Wait() // returns when the last process of the node is gone
	}
	if n.cgroup != "" {
		topology.RemoveCgroup(n.cgroup)
	}
	return errors.Join(errs...)
}

// RunningPod is a pod of a node.
type RunningPod struct {
	*topology.Pod
	node   *node
	cgroup string
}

// addPod adds a pod, whose network namespace is found where a container runtime
// puts it.
func (n *node) addPod(name string) (*RunningPod, error) {
	pod, err := n.Node.AddPod(name)
	if err != nil {
		return nil, err
	}
	if err := bind(pod.Path(), filepath.Join(n.dir, netnsDir, "cni-"+name), 0); err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	cgroup := filepath.Join(n.cgroup, "kubepods", name)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	return &RunningPod{Pod: pod, node: n, cgroup: cgroup}, nil
}

// Start starts a process in the pod. It is killed when the mesh is stopped, and
// when this process is gone; awaiting it is for whoever started it.
func (p *RunningPod) Start(command *exec.Cmd) error {
	if err := p.start(command, func() error { return nil }); err != nil {
		return fmt.Errorf("start in pod %s: %w", p.Name, err)
	}
	return nil
}

// start starts a process in the pod's network namespace and cgroup, and among
// its node's processes, which end with the first of them. Before that, prepare
// is called on the thread that starts it.
func (p *RunningPod) start(command *exec.Cmd, prepare func() error) error {
	cgroup, err := os.Open(p.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	processes, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", p.node.init.Process.Pid))
	if err != nil {
		return err
	}
	defer processes.Close()
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.UseCgroupFD, command.SysProcAttr.CgroupFD = true, int(cgroup.Fd())

	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with what it has become
		err := p.Enter()
		if err == nil {
			err = os.NewSyscallError("setns", unix.Setns(int(processes.Fd()), unix.CLONE_NEWPID))
		}
		if err == nil {
			err = prepare()
		}
		if err == nil {
			err = command.Start()
		}
		started <- err
	}()
	return <-started
}

// keepOnly takes all other capabilities from what this thread will execute.
func keepOnly(capabilities []uintptr) error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(capabilities, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}
