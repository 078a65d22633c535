package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf/link"
)

// troubles are what is wrong with the node, or was a short time ago, while it redirects all the same.
type troubles struct {
	mu sync.Mutex
	// Guarded by mu.
	kubelet  *Problem  // nil: it is known
	attach   *Problem  // nil: the node's programs run
	pins     *Problem  // nil: what is to be pinned is
	unhooked time.Time // when one of the node's programs was last found missing
	unpinned time.Time // when the pins were last found missing
}

// removalMemory is how long it is a problem of the node that somebody took something off.
const removalMemory = 10 * time.Minute

// lookForKubelet is findKubelet, for watch.
func (r *Redirect) lookForKubelet() {
	err := r.findKubelet()
	problem, _ := errors.AsType[*Problem](err)
	if err != nil && problem == nil {
		problem = &Problem{
			Code: KubeletMissing, Detail: "Who listens at the kubelet's port cannot be read.",
			Fix: "Let no security profile withhold netlink's sock_diag from ztunnel.", Err: err,
		}
	}
	r.troubles.mu.Lock()
	defer r.troubles.mu.Unlock()
	if before := r.troubles.kubelet; (before == nil) != (problem == nil) {
		if problem != nil {
			r.logger.Warn("kubelet not found", "error", problem)
		} else {
			r.logger.Info("kubelet found")
		}
	}
	r.troubles.kubelet = problem
}

// lookAfterHooks has the node's programs run that somebody took off.
func (r *Redirect) lookAfterHooks() {
	changed, err := r.attach()
	r.troubles.mu.Lock()
	defer r.troubles.mu.Unlock()
	if changed {
		r.troubles.unhooked = time.Now()
		r.logger.Warn("a program of the node was taken off, and is there again", "cgroup", r.config.CgroupPath)
	}
	if r.troubles.attach = nil; err != nil {
		r.troubles.attach = &Problem{
			Code: HookRemoved, Detail: "A program of the node is not attached: what pods connect to goes past ztunnel.",
			Fix: "Find out who detaches programs from the node's root cgroup.", Err: err,
		}
	}
}

// lookAfterPins pins anew if the BPF file system is another one.
func (r *Redirect) lookAfterPins() {
	_, err := os.Stat(filepath.Join(r.pins.maps(), enrolledMap))
	if err != nil {
		err = r.repin()
	}
	r.troubles.mu.Lock()
	defer r.troubles.mu.Unlock()
	if r.troubles.pins = nil; err != nil {
		r.troubles.pins = &Problem{
			Code: BPFFSMissing, Detail: fmt.Sprintf("Nothing can be pinned in %s: should ztunnel end, connections to captured pods are not steered to it.", r.pins),
			Fix: "Mount a BPF file system on the node (mount -t bpf bpf /sys/fs/bpf).", Err: err,
		}
	}
}

func (r *Redirect) repin() error {
	if err := prepareBPFFS(r.config); err != nil {
		return err
	}
	if err := r.pins.make(); err != nil {
		return err
	}
	if err := r.node.Repin(r.pins.maps()); err != nil {
		return err
	}
	var errs []error
	for _, c := range r.snapshot() {
		errs = append(errs, r.pins.repinPod(c.pod.UID, c.steer))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.troubles.mu.Lock()
	r.troubles.unpinned = time.Now()
	r.troubles.mu.Unlock()
	r.logger.Warn("the BPF file system was replaced: everything is pinned again", "path", string(r.pins))
	return nil
}

// repinPod pins a pod's link of steer, which believes to be pinned.
func (p pins) repinPod(uid string, steer link.Link) error {
	about, err := steer.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	another, err := link.NewFromID(about.ID)
	if err != nil {
		return fmt.Errorf("open link: %w", err)
	}
	defer another.Close()
	if err := os.MkdirAll(p.pod(uid), 0o700); err != nil {
		return fmt.Errorf("make folder for pins of pod %s: %w", uid, err)
	}
	path := filepath.Join(p.pod(uid), steerPin)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return replacePin(another, path)
}

// Problems are those of a node that redirects all the same.
func (r *Redirect) Problems() []*Problem {
	var all []*Problem
	add := func(p *Problem) {
		if p != nil {
			all = append(all, p)
		}
	}
	r.troubles.mu.Lock()
	t := &r.troubles
	add(t.kubelet)
	add(t.attach)
	add(t.pins)
	add(recent(t.unhooked, HookRemoved, "A program of the node was taken off its root cgroup", "Find out who on the node detaches programs."))
	add(recent(t.unpinned, PinsLost, "The BPF file system with ztunnel's pins was replaced", "Find out who on the node unmounts it."))
	r.troubles.mu.Unlock()
	for _, c := range r.snapshot() {
		c.guard.mu.Lock()
		missing, restored := c.guard.missing, c.guard.restored
		c.guard.mu.Unlock()
		add(missing)
		add(recent(restored, GuardRemoved, fmt.Sprintf("The guard of pod %s was taken off", c.pod.UID),
			"Find out who on the node, or which application with CAP_NET_ADMIN, detaches programs."))
	}
	return all
}

// recent is a problem that was mended, but not long ago; nil after that.
func recent(at time.Time, code Code, what, fix string) *Problem {
	if at.IsZero() || time.Since(at) > removalMemory {
		return nil
	}
	return &Problem{Code: code, Detail: fmt.Sprintf("%s at %s, and is there again.", what, at.UTC().Format(time.RFC3339)), Fix: fix}
}
