// Package redirect brings pods' connections to ztunnel, inside the pods' network namespaces.
//
// [Open] prepares the node: programs at its cgroup root, pinned. [Redirect.Enroll] captures a pod, in this order:
//
//	check     the namespace bears the pod's addresses and is not the node's
//	route     what bears the mark goes to lo, with the pod's address as source
//	listen    listeners in the namespace: outbound, plaintext, HBONE, and two for DNS
//	load      the pod's steer program and its addresses
//	guard     attach to the pod's links: everything passes until the pod is strict
//	dns       attach: does nothing before the last step
//	steer     attach: what connects to the pod comes to the listeners    (one step)
//	enrol     what the pod connects to bears the mark from here on       (one step)
//
// [Capture.Hold] goes further: what the pod connects to waits, its SYN held back on lo, until ztunnel lets it come to Outbound or
// fails its connect(2). Whether that is attached or not, nothing goes past the listeners.
//
// [Capture.SetStrict] has the guard drop what is not ztunnel's. Where it is attached it stays, without anybody who holds it
// (site.go): at the pod's end of each link and at the node's, for each sees what the other may miss. It is looked after, and put
// there again within a second if somebody took it off. From devices without an end in the node's namespace (a second network's
// macvlan, a virtual function) only the pod's end is guarded: there a packet socket that bypasses the queue, or an application
// with CAP_NET_ADMIN that takes the program off, sends unseen.
//
// Until steer all of it is inert. [Capture.Release] goes back: first enrol, then, when what bears the mark has arrived, steer,
// then the listeners once their queues are empty. Rule and route stay, inert: a delivered connection bears the mark as long as it lives, and without the
// route it would leave by the wire.
//
// Invariants: established connections are never touched, but those from before the capture of a pod that turns strict, after a
// grace (precapture.go). What enforces outlives the process: connections to and from captured pods are refused until the next
// process adopts what is attached and puts listeners in, each in one step. A pod's listeners, addresses and program are its own:
// no lookup can reach another pod's.
//
// What holds what up: the maps are pinned, and bound to the connect program; connect, permit and the guards are attached without
// a link, and stay if the BPF file system is lost as well (hook.go, site.go). steer's link has its pin only, for the kernel knows
// no other way: with both the pin and the process lost, what connects to a permissive pod reaches its application, what
// connects to a strict one gets no answer past the guard, and what either connects to is refused. A process that finds the pins
// lost pins again; one that starts finds the maps by what is attached.
//
// Past the listeners go only connections that ztunnel delivers, and the kubelet's: whoever is in the cgroup of the socket that
// listens at its port in the node's network, and not in a pod's. Where it is looked for twice a second, and where it was last if
// it is gone (kubelet.go). On a node whose processes are in cgroups of version 1 alone, all of them that are in no pod's are one.
//
// A node can be told to refuse TCP of pods that are neither captured nor known to be left alone (classify.go). It goes by the
// cgroup of who connects: a process of a pod in a namespace of the pod's own making (Docker in a pod) is refused too.
//
// UDP and other protocols are left alone but for questions to DNS servers, and where [Capture.SetEgress] denies them; so are
// link-local IPv6 addresses and networks other than the pod's first, as far as connect(2) is concerned: the guard of a strict pod
// knows no such exceptions.
//
// Which pod is captured when, and whose a namespace is, is the pods package's job; what happens on a connection is
// outbound's and inbound's.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// Config says where things are on this node. Paths are as the process sees them.
type Config struct {
	// PinDir is the folder for pins: /sys/fs/bpf/ambit if empty. It is made if missing, in a BPF file system.
	PinDir string
	// CgroupPath is the root of the node's cgroup2 hierarchy; if empty it is found among the process's mounts.
	CgroupPath string
	// Procfs is a procfs with a writable sys/net: /proc if empty.
	Procfs string
	// HostNetNS is the node's network namespace: Procfs + "/1/ns/net" if empty.
	HostNetNS string
	// NetNSDir is where the container runtime keeps pods' network namespaces: /run/netns if empty. Only Remove looks there.
	NetNSDir string
	// KubeletPort is where the kubelet serves: 10250 if zero.
	KubeletPort uint16
	// MountBPFFS has a BPF file system mounted above PinDir where there is none: for this process's mount namespace.
	MountBPFFS bool
	Logger     *slog.Logger
	// Probe asks the kernel for a program type: features.HaveProgramType if nil.
	Probe func(ebpf.ProgramType) error
}

func (c Config) withDefaults() (Config, error) {
	if c.PinDir == "" {
		c.PinDir = "/sys/fs/bpf/ambit"
	}
	if c.Procfs == "" {
		c.Procfs = "/proc"
	}
	if c.HostNetNS == "" {
		c.HostNetNS = filepath.Join(c.Procfs, "1/ns/net")
	}
	if c.NetNSDir == "" {
		c.NetNSDir = "/run/netns"
	}
	if c.KubeletPort == 0 {
		c.KubeletPort = kubeletPort
	}
	if c.Probe == nil {
		c.Probe = features.HaveProgramType
	}
	if c.CgroupPath == "" {
		found, err := FindCgroup2("/proc/self/mountinfo")
		if err != nil {
			return c, err
		}
		c.CgroupPath = found
	}
	return c, nil
}

// kubeletPort is what every distribution has.
const kubeletPort = 10250

// A Redirect is the redirection of one node. Its methods may be called concurrently.
type Redirect struct {
	// Fixed after Open.
	config     Config
	logger     *slog.Logger
	hostCookie uint64
	host       *podns.NetNS // the node's
	closing    chan struct{}
	ceded      atomic.Bool // another process looks after the node
	pins       pins
	node       *bpf.Node
	programs   map[string]numbered // node's, by name
	withoutTCX bool                // as before Linux 6.6
	spoofed    portRange

	// holds are the pods whose connections are held, by slot: for the reader, who must not wait for mu.
	holds   [bpf.MaxPods]atomic.Pointer[hold]
	reading sync.WaitGroup

	// Guarded by mu.
	mu       sync.Mutex
	captures map[string]*Capture // by UID
	slots    [bpf.MaxPods]bool   // taken
	adopted  map[string]*remains // by UID
	others   []pins              // of other layouts, until no pod is left in them
	held     *bpf.Held           // what is read; nil until the first Hold

	troubles troubles

	tunnelled struct {
		mu   sync.Mutex
		told map[bpf.TunnelledTo]bpf.Tunnelled // guarded by mu: as the kernel has it; nil: not read yet
	}
}

// remains is what an earlier process left of a captured pod.
type remains struct {
	cookie uint64 // zero: it died before it captured, or pinned it in another layout
	ips    []netip.Addr
}

// Open prepares the node and takes over what an earlier process pinned. A [Problem] is returned if the node lacks what
// redirection needs.
func Open(config Config) (_ *Redirect, err error) {
	if config, err = config.withDefaults(); err != nil {
		return nil, err
	}
	if err := errors.Join(checkKernel(config.Probe), prepareBPFFS(config), checkCgroup2(config.CgroupPath)); err != nil {
		return nil, err
	}
	netns, host, err := findHost(config.HostNetNS, config.CgroupPath)
	if err != nil {
		return nil, err
	}
	if err := adoptAttached(config, host.Cookie); err != nil {
		return nil, errors.Join(explain("The kernel does not let ztunnel see its BPF programs.", err), netns.Close())
	}
	r := &Redirect{
		config:     config,
		logger:     config.Logger,
		hostCookie: host.Cookie,
		host:       netns,
		closing:    make(chan struct{}),
		pins:       layoutPins(config.PinDir, layout),
		captures:   map[string]*Capture{},
		spoofed:    spoofedPorts,
	}
	if err := r.pins.make(); err != nil {
		return nil, errors.Join(err, netns.Close())
	}
	r.node, err = bpf.Load(r.pins.maps(), host)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		netns.Close()
		return nil, &Problem{
			Code:   PinsUnusable,
			Detail: fmt.Sprintf("The maps pinned in %s are not those of this version.", r.pins.maps()),
			Fix:    "Remove that folder: the node's captured pods are not protected until ztunnel has captured them again.",
			Err:    err,
		}
	}
	if err != nil {
		netns.Close()
		return nil, explain("The kernel does not let ztunnel load its BPF programs.", err)
	}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if err := errors.Join(r.classifySelf(), r.numberPrograms()); err != nil {
		return nil, err
	}
	r.lookForKubelet()
	if _, err := r.attach(); err != nil {
		return nil, explain("The kernel does not let ztunnel attach its BPF programs.", err)
	}
	if err := r.takeStock(); err != nil {
		return nil, err
	}
	r.reading.Go(r.watch)
	return r, nil
}

// takeStock finds the pods that earlier processes captured.
func (r *Redirect) takeStock() error {
	r.adopted = map[string]*remains{}
	uids, err := r.pins.uids()
	if err != nil {
		return err
	}
	if r.others, err = otherLayouts(r.config.PinDir); err != nil {
		return err
	}
	for _, other := range r.others {
		more, err := other.uids()
		if err != nil {
			return err
		}
		uids = append(uids, more...)
	}
	for _, uid := range uids {
		r.adopted[uid] = &remains{}
	}
	enrolled, err := r.node.Enrolled()
	if err != nil {
		return fmt.Errorf("list captured pods: %w", err)
	}
	for cookie, pod := range enrolled {
		r.adopted[pod.UID] = &remains{cookie: cookie, ips: valid(pod.IPv4, pod.IPv6)}
	}
	return r.retireLocked()
}

func valid(addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
}

// namespacesLocked are those where a guard may be.
func (r *Redirect) namespacesLocked() []*podns.NetNS {
	all := []*podns.NetNS{r.host}
	for _, c := range r.captures {
		all = append(all, c.pod.NetNS)
	}
	return all
}

// retireLocked removes the pins of other layouts in which no pod is left.
func (r *Redirect) retireLocked() error {
	var left []pins
	for _, other := range r.others {
		uids, err := other.uids()
		if err != nil {
			return err
		}
		if len(uids) > 0 {
			left = append(left, other)
			continue
		}
		if err := other.remove(r.config.CgroupPath, r.namespacesLocked()); err != nil {
			return err
		}
		r.logger.Info("removed pins of another layout", "path", string(other))
	}
	r.others = left
	return nil
}

// Adopted returns the UIDs of the pods that an earlier process captured, and that this one has neither enrolled nor
// forgotten. Connections to and from them are refused.
func (r *Redirect) Adopted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.adopted))
}

// Forget lets go of a pod that an earlier process captured: it is gone, or no longer to be captured.
func (r *Redirect) Forget(uid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	left, ok := r.adopted[uid]
	if !ok {
		return nil
	}
	if err := r.withdrawRemainsLocked(left); err != nil {
		return fmt.Errorf("forget pod %s: %w", uid, err)
	}
	for _, p := range append([]pins{r.pins}, r.others...) {
		if err := p.removePod(uid); err != nil {
			return err
		}
	}
	delete(r.adopted, uid)
	return r.retireLocked()
}

func (r *Redirect) withdrawRemainsLocked(left *remains) error {
	if left.cookie == 0 {
		return nil
	}
	if err := r.node.RemoveGuard(left.cookie); err != nil {
		return err
	}
	if err := r.node.Withdraw(left.cookie); err != nil {
		return err
	}
	for _, ip := range left.ips {
		if err := r.node.RemovePod(ip, left.cookie); err != nil {
			return err
		}
	}
	return nil
}

// Verdicts counts the kernel's decisions on this node by name, as bpf.Node does.
func (r *Redirect) Verdicts() (map[string]uint64, error) { return r.node.Verdicts() }

// Cede leaves the node to another process, which takes over pod by pod: nothing is looked after, attached or restored any more.
// What comes to the listeners goes on coming until it does. Captures may still be dialled from, and closed, not released.
func (r *Redirect) Cede() { r.ceded.Store(true) }

// Close ends the process's part: its listeners close, what is pinned stays and refuses. Captures must not be used
// afterwards.
func (r *Redirect) Close() error {
	r.mu.Lock()
	select {
	case <-r.closing: // a second time: nothing is left to do
		r.mu.Unlock()
		return nil
	default:
		close(r.closing)
	}
	var errs []error
	for _, c := range r.captures {
		errs = append(errs, c.closeListeners(), c.steer.Close(), c.closeHoldLocked(), c.devices.Close(), c.closeDNS())
	}
	captures := r.captures
	r.captures = map[string]*Capture{}
	if r.held != nil {
		errs = append(errs, r.held.Close())
	}
	r.mu.Unlock()
	r.reading.Wait()
	for _, c := range captures {
		errs = append(errs, c.closeGuard())
	}
	r.node.Close()
	return errors.Join(append(errs, r.host.Close())...)
}
