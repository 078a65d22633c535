package pods

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// Dataplane captures pods and carries their connections.
type Dataplane interface {
	// Start captures a pod: when it returns without error, new connections in
	// both directions pass the proxy. Its context ends the attempt, not the capture.
	Start(ctx context.Context, target Target) (Running, error)
	// Pinned lists the pods whose capture outlived an earlier process and which
	// this one has neither started nor forgotten.
	Pinned() []string
	// Forget removes what is pinned of a pod that is gone.
	Forget(uid string) error
	// Leave notes that the pod of a sandbox is known, and not to be captured.
	Leave(sandbox Sandbox) error
}

// Running is one captured pod.
type Running interface {
	// Release lets go of a pod that lives on: when it returns, new connections
	// are direct. Established ones end in their own time.
	Release(ctx context.Context) error
	// Drain accepts nothing more and returns when the last connection has ended,
	// or the context. The redirection stays.
	Drain(ctx context.Context)
	// Close ends what is left after the pod's sandbox is gone.
	Close() error
}

// Target is a pod to capture.
type Target struct {
	UID, Namespace, Name, ServiceAccount string
	Sandbox                              Sandbox
	// DNS says that what it asks DNS servers is captured too.
	DNS bool
	// Serving: its applications run already, outside the mesh. What they do now
	// works, so they are not captured before the mesh can carry it. A pod that is
	// only starting, or was captured by an earlier process, cannot wait for that.
	Serving bool
}

// Coded is an error that has a code of its own, a CamelCase word.
type Coded interface {
	error
	Code() string
}

// Kubernetes is what the API server is asked. Selectors are Kubernetes' own;
// errors are too, such as NotFound.
type Kubernetes interface {
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	Namespace(ctx context.Context, name string) (*corev1.Namespace, error)
	Pods(fields, labels string) cache.ListerWatcher
	Namespaces() cache.ListerWatcher
}

// Config of the node's pods.
type Config struct {
	// Node is this node's name in Kubernetes.
	Node string
	// NeverHeld are namespaces whose pods the CNI gate lets start at once.
	NeverHeld  []string
	Client     Kubernetes
	Dataplane  Dataplane
	Namespaces Namespaces
	// NetNSDir is where this process finds the namespaces of the node's pods.
	NetNSDir string
	// SavedPath is of the file that holds what is captured, for the next process.
	SavedPath string
	// EnrolmentPath is of the file that the CNI gate reads while this process is down.
	EnrolmentPath string
	Logger        *slog.Logger
}

// captureParallelism bounds how many captures are set up at once: enough to
// label a hundred pods at once, few enough to leave the node its processors.
const captureParallelism = 8

// Pods are the pods of this node.
type Pods struct {
	// Fixed after New.
	config  Config
	logger  *slog.Logger
	scanner *scanner
	watch   *watch
	slots   chan struct{}
	synced  chan struct{}
	ready   chan struct{}
	saves   chan struct{}
	changed chan struct{}

	mu      sync.Mutex
	workers map[string]*worker // by UID
	// spawn starts a worker; nil before Run and after its end.
	spawn     func(*worker)
	isSynced  bool
	saveError error
	gateError error
	// enrolled is what the last process wrote for the gate; read-only after Run began.
	enrolled cniproto.Enrolment
	// enrolledSince is since when namespaces are known to be enrolled.
	enrolledSince map[string]time.Time
}

// New returns the pods of a node; Run makes them move.
func New(config Config) *Pods {
	p := &Pods{
		config:  config,
		logger:  config.Logger,
		scanner: &scanner{namespaces: config.Namespaces},
		slots:   make(chan struct{}, captureParallelism),
		synced:  make(chan struct{}),
		ready:   make(chan struct{}),
		saves:   make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		workers: make(map[string]*worker),
	}
	p.watch = newWatch(p)
	return p
}

// Run keeps the pods as Kubernetes asks until the context ends; then workers
// stop and captures keep running: Drain ends them.
func (p *Pods) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	p.mu.Lock()
	p.spawn = func(w *worker) { group.Go(func() { w.run(ctx) }) }
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.spawn = nil
		p.mu.Unlock()
	}()

	_, p.enrolled = p.readEnrolment()
	p.noteEnrolled(p.enrolled)
	p.adoptSaved()
	group.Go(func() { p.save(ctx) })
	if err := p.watch.start(ctx, &group); err != nil {
		return err
	}
	if !p.watch.wait(ctx) {
		return nil
	}
	p.sweep(time.Now())
	p.mu.Lock()
	p.isSynced = true
	p.mu.Unlock()
	close(p.synced)
	p.signal()
	group.Go(func() { p.writeEnrolment(ctx) })
	group.Go(func() { p.firstPass(ctx) })

	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			p.sweep(now.Add(-sweepInterval))
		}
	}
}

// sweepInterval bounds how long a missed event leaves something behind.
const sweepInterval = 30 * time.Second

// sweep corrects what events alone cannot: pods that Kubernetes has forgotten,
// and pins of pods that this process never met. What was learnt from the CNI
// plugin after the given moment is left for the next time.
func (p *Pods) sweep(before time.Time) {
	pinned := p.config.Dataplane.Pinned()
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, w := range p.workers {
		if w.facts.alive && w.facts.told.Before(before) && !p.watch.has(uid) {
			w.facts.alive = false
			w.wake()
		}
	}
	for _, uid := range pinned {
		if _, ok := p.workers[uid]; !ok {
			p.ensureLocked(uid)
		}
	}
}

// ensureLocked returns the worker of a pod, a new one where there is none; nil
// when Run is not running.
func (p *Pods) ensureLocked(uid string) *worker {
	if w, ok := p.workers[uid]; ok {
		return w
	}
	if p.spawn == nil {
		return nil
	}
	w := newWorker(p, uid)
	p.workers[uid] = w
	p.spawn(w)
	return w
}

// Release tells that no node sends tunnels to a pod any more: the controller's
// answer to StateWithdrawing, with the Since of that status. In any other state,
// or for a withdrawal before this one, it is late, and ignored.
func (p *Pods) Release(uid string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[uid]
	if !ok || w.status.State != StateWithdrawing || !w.status.Since.Equal(since) {
		p.logger.Warn("release ignored: it is not of the present withdrawal", "uid", uid, "withdrawing_since", since)
		return
	}
	w.facts.granted = true
	w.wake()
}

// Retry tries all that failed again at once: a trouble of the node is over.
func (p *Pods) Retry() {
	p.mu.Lock()
	for _, w := range p.workers {
		w.facts.attempt++
		w.wake()
	}
	p.mu.Unlock()
	select {
	case <-p.synced:
		p.sweep(time.Now().Add(-sweepInterval))
	default:
	}
}

// Synced is closed once Kubernetes has told all pods and namespaces.
func (p *Pods) Synced() <-chan struct{} { return p.synced }

// Ready is closed once each enrolled pod that ran at the start has been
// captured, or could not be.
func (p *Pods) Ready() <-chan struct{} { return p.ready }

// Drain ends the captures of a process that ends: nothing new is accepted, and
// connections may end in their own time until the context does. To be called
// after Run has returned.
func (p *Pods) Drain(ctx context.Context) {
	var group sync.WaitGroup
	p.mu.Lock()
	for _, w := range p.workers {
		for _, running := range w.captures() {
			group.Go(func() { running.Drain(ctx) })
		}
	}
	p.mu.Unlock()
	group.Wait()
}

// firstPass closes ready when no enrolled pod waits for its first attempt.
func (p *Pods) firstPass(ctx context.Context) {
	started := time.Now()
	for {
		if p.allAttempted(time.Since(started) > firstPassPatience) {
			close(p.ready)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(firstPassPoll):
		}
	}
}

const (
	firstPassPoll = 20 * time.Millisecond
	// firstPassPatience is for pods whose namespace is not found: a stale status
	// after a power cut must not keep the node from being ready.
	firstPassPatience = 5 * time.Second
)

func (p *Pods) allAttempted(patienceOver bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		waits := w.facts.alive && w.facts.mode == Enrolled && (len(w.facts.ips) > 0 || w.facts.sandbox != nil)
		left := w.facts.alive && w.facts.mode == NotEnrolled && !w.facts.hostNetwork && len(w.facts.ips) > 0 && w.running == nil
		if left && !w.leaveTried && !patienceOver {
			return false
		}
		if waits && !w.attempted && !(patienceOver && w.status.State == StatePending) {
			return false
		}
	}
	return true
}

// coded renders an error as its code, a colon, and a sentence.
func coded(err error, otherwise string) string {
	var c Coded
	if errors.As(err, &c) {
		return c.Code() + ": " + c.Error()
	}
	return otherwise + ": " + err.Error()
}

// facts are what the outside says of a pod. Guarded by Pods.mu.
type facts struct {
	namespace, name, serviceAccount string
	alive                           bool
	mode                            Mode
	reason                          string
	hostNetwork                     bool
	ips                             []netip.Addr
	dnsCapture                      string // the annotation's value
	lastSeen                        time.Time
	// sandbox by the CNI plugin's word or the last process's.
	sandbox *Sandbox
	// ended is the path of the sandbox whose end the CNI plugin saw.
	ended   string
	granted bool
	// remembered: enrolled when the last process saw it, and Kubernetes has not
	// spoken of it to this one.
	remembered bool
	// moved: the last process had it captured in a sandbox that is gone.
	moved bool
	// told is when the CNI plugin last spoke of the pod.
	told time.Time
	// attempt is raised to ask for an attempt now, whatever failed before.
	attempt int
}
