package simulated

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated/apiserver"
)

// container is a shipped process to be started.
type container struct {
	shipped
	binary string
	pod    *RunningPod
	log    string            // file name
	files  map[string]string // path in the container -> file
	// onNode: it works on its node, and has the node's folders.
	onNode bool
}

// nodeFolders are the volumes of ztunnel's manifest: path in the container ->
// path below the node's folder.
var nodeFolders = map[string]string{
	"/host/proc":          procDir,
	"/sys/fs/bpf":         bpfDir,
	"/run/netns":          netnsDir,
	"/var/lib/ambit":      "var/lib/ambit",
	"/run/ambit":          "run/ambit",
	"/host/opt/cni/bin":   "opt/cni/bin",
	"/host/etc/cni/net.d": cniDir,
}

const (
	serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenPath         = "/var/run/secrets/tokens/ambit-token"
	entrypoint        = "/entrypoint"
)

// startContainer starts a process in a root folder of its own.
func (m *Mesh) startContainer(c container) (*Process, error) {
	root := filepath.Join(m.dir, "containers", c.pod.Name)
	if _, err := os.Stat(root); err != nil {
		if err := m.makeRoot(c, root); err != nil {
			return nil, fmt.Errorf("make container %s: %w", c.pod.Name, err)
		}
	}
	environment, err := c.environmentIn(c.pod)
	if err != nil {
		return nil, fmt.Errorf("make container %s: %w", c.pod.Name, err)
	}
	if err := os.MkdirAll(m.config.Logs, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for logs: %w", err)
	}
	path := filepath.Join(m.config.Logs, c.log)
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()

	command := &exec.Cmd{
		Path: entrypoint, Args: append([]string{entrypoint}, c.arguments...), Dir: "/",
		Env: append(environment,
			"KUBERNETES_SERVICE_HOST="+m.nodes[control].IPv4.String(), fmt.Sprint("KUBERNETES_SERVICE_PORT=", apiPort)),
		Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: c.user, Gid: c.user}},
	}
	began := time.Now()
	if err := c.pod.start(command, func() error { return keepOnly(c.capabilities) }); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.pod.Name, err)
	}
	p := &Process{pod: c.pod, command: command, logPath: path, started: began, ended: make(chan struct{})}
	go p.await()
	return p, nil
}

// makeRoot makes the file system that the process sees.
func (m *Mesh) makeRoot(c container, root string) error {
	n := c.pod.node
	// What container runtimes mount, what others are mounted into first.
	if err := bindReadOnly("/sys", filepath.Join(root, "/sys")); err != nil {
		return err
	}
	binds := map[string]string{entrypoint: c.binary, "/proc": filepath.Join(n.dir, procDir), "/dev/null": "/dev/null"}
	maps.Copy(binds, c.files)
	if c.onNode {
		for path, folder := range nodeFolders {
			binds[path] = filepath.Join(n.dir, folder)
		}
		if err := bindReadOnly(n.cgroup, filepath.Join(root, "/host/sys/fs/cgroup")); err != nil {
			return err
		}
	}
	for path, source := range binds {
		if err := bind(source, filepath.Join(root, path), unix.MS_REC); err != nil {
			return err
		}
	}
	return m.writeFiles(c, root)
}

// writeFiles writes what Kubernetes and a container runtime put into a container.
func (m *Mesh) writeFiles(c container, root string) error {
	subject := m.subject(c.pod)
	for path, content := range map[string]string{
		serviceAccountDir + "/ca.crt":    string(m.apiCA),
		serviceAccountDir + "/namespace": systemNamespace,
		serviceAccountDir + "/token":     m.tokenFor(subject, ""),
		tokenPath:                        m.tokenFor(subject, ca.Audience),
		"/etc/hosts":                     m.hosts(),
		"/etc/nsswitch.conf":             "hosts: files\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hosts names the controller by the addresses of all replicas: those that do not
// lead refuse, as behind the Service of a cluster.
func (m *Mesh) hosts() string {
	lines := "127.0.0.1 localhost\n"
	for i := range max(1, m.config.Controllers) {
		lines += m.system[controllerPod(i)].IPv4.String() + " controller." + systemNamespace + ".svc\n"
	}
	return lines
}

func (m *Mesh) tokenFor(subject apiserver.Subject, audience string) string {
	token := newToken()
	subject.Audience = audience
	m.api.AddToken(token, subject)
	return token
}

// Process is a shipped process.
type Process struct {
	pod     *RunningPod
	command *exec.Cmd
	logPath string
	started time.Time
	ended   chan struct{}
}

func (p *Process) await() {
	p.command.Wait()
	close(p.ended)
}

// PID as this process sees it.
func (p *Process) PID() int { return p.command.Process.Pid }

// Started is when the process was started.
func (p *Process) Started() time.Time { return p.started }

// Pod that the process runs in.
func (p *Process) Pod() *RunningPod { return p.pod }

// LogPath is of the file with all that it says, and those before it.
func (p *Process) LogPath() string { return p.logPath }

// Ended is closed when the process is gone.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Signal sends a signal.
func (p *Process) Signal(signal os.Signal) error { return p.command.Process.Signal(signal) }

// Kill ends the process as kill -9 does, and waits for its end.
func (p *Process) Kill() {
	p.command.Process.Kill()
	<-p.ended
}

// Terminate asks the process to end, and waits until it has.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end %s: %w", p.pod.Name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end %s: %w", p.pod.Name, context.Cause(ctx))
	}
}
