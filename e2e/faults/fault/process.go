package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func ofProcess() []Fault {
	return []Fault{
		{
			Name: "ztunnel-kill9", Quick: true,
			What:   "ztunnel of a node dies without a word.",
			How:    "SIGKILL; the kubelet starts it again.",
			Inject: killOnce,
		},
		{
			Name:   "ztunnel-oom",
			What:   "ztunnel of a node has no memory left.",
			How:    "The limit of its container's memory cgroup is drawn to what it uses until the kernel's OOM killer ends it; the kubelet starts it again.",
			Inject: starve,
		},
		{
			Name:    "ztunnel-crashloop",
			What:    "ztunnel of a node ends as soon as it starts, again and again.",
			How:     "SIGKILL within 20 ms of each start, until the kubelet backs off; the cause goes with the killing, and with the pod, so that the kubelet does not wait.",
			Inject:  func(_ context.Context, l *Lab) error { return l.KeepDead(Node) },
			Heal:    func(ctx context.Context, l *Lab) error { return l.Revive(ctx) },
			Hold:    6 * time.Second,
			NewPods: true,
		},
		{
			Name: "listener-lost", Quick: true,
			What:   "ztunnel lives, but its listeners in the pods are gone.",
			How:    "Copies of the listening sockets are taken from the process (pidfd_getfd) and shut down, after which they do not listen, and the kernel has no socket to hand connections to; the cause goes with ztunnel, which is killed.",
			Inject: loseListeners,
			Heal: func(_ context.Context, l *Lab) error {
				_, err := l.Bed.Machine(Node).Signal(ztunnel, syscall.SIGKILL) // it may be dead already
				return err
			},
		},
	}
}

func killOnce(_ context.Context, l *Lab) error {
	killed, err := l.Bed.Machine(Node).Signal(ztunnel, syscall.SIGKILL)
	if err == nil && killed == 0 {
		err = fmt.Errorf("no ztunnel runs on %s", Node)
	}
	return err
}

// starvePoll is how often the limit is drawn to the use.
const (
	starvePoll     = 5 * time.Millisecond
	starvePatience = 20 * time.Second
)

// starve draws the limit of ztunnel's memory to its use, until the kernel has
// killed it.
func starve(ctx context.Context, l *Lab) error {
	all, err := l.Bed.Machine(Node).Processes(ztunnel)
	if err != nil {
		return err
	}
	if len(all) != 1 {
		return fmt.Errorf("%d processes of ztunnel on %s, want 1", len(all), Node)
	}
	group, err := findMemory(all[0].PID)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(starvePatience)
	for {
		killed, err := group.killed()
		if errors.Is(err, os.ErrNotExist) || killed > 0 {
			return nil // its group went with it
		}
		if err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("ztunnel lives on with %s of memory", group.folder)
		}
		if err := group.squeeze(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		time.Sleep(starvePoll)
	}
}

// memory is a memory cgroup, of the first or the second version.
type memory struct {
	folder                 string
	limit, use, kills, key string
}

func findMemory(pid int) (memory, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return memory{}, err
	}
	second := ""
	for line := range strings.Lines(string(content)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == "memory" {
			return memory{filepath.Join("/sys/fs/cgroup/memory", fields[2]), "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "oom_kill "}, nil
		}
		if len(fields) == 3 && fields[0] == "0" {
			second = fields[2]
		}
	}
	return memory{filepath.Join("/sys/fs/cgroup", second), "memory.max", "memory.current", "memory.events", "oom_kill "}, nil
}

// squeeze sets the limit to the use. The kernel refuses what it cannot make true:
// the next time it can, or ztunnel has asked for more.
func (m memory) squeeze() error {
	use, err := os.ReadFile(filepath.Join(m.folder, m.use))
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(m.folder, m.limit), use, 0)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EINTR) {
		return nil
	}
	return err
}

// killed is how many processes of the group the kernel has killed for memory.
func (m memory) killed() (int, error) {
	content, err := os.ReadFile(filepath.Join(m.folder, m.kills))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if count, ok := strings.CutPrefix(line, m.key); ok {
			return strconv.Atoi(strings.TrimSpace(count))
		}
	}
	return 0, fmt.Errorf("%s does not count kills", m.kills)
}
