package pods

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

const (
	// sandboxCheck is how soon the end of a sandbox is noticed where the CNI
	// plugin does not tell.
	sandboxCheck = time.Second
	// A sandbox that is not found is looked for ever less often.
	searchMin, searchMax = 50 * time.Millisecond, 500 * time.Millisecond
	// searchPatience is after how long a missing sandbox is called a failure.
	searchPatience = 10 * time.Second
	// A capture that failed is tried again ever less often.
	retryMin, retryMax = 100 * time.Millisecond, 30 * time.Second
	// captureTimeout ends one attempt; slotTimeout lets others go on before.
	captureTimeout, slotTimeout = 15 * time.Second, 5 * time.Second
	releaseTimeout              = 30 * time.Second
	// idle is the longest sleep of a worker that waits for facts.
	idle = time.Hour
)

// worker takes one pod through its states. It alone calls the data plane for
// its pod, so that a call that hangs holds back no other.
type worker struct {
	pods   *Pods
	uid    string
	wakeup chan struct{}

	// Guarded by Pods.mu.
	facts     facts
	status    Status
	attempted bool
	// leaveTried: it was tried to note that the pod is left alone.
	leaveTried bool
	// waiters is closed and replaced at each change of status.
	waiters chan struct{}
	running Running
	sandbox Sandbox  // of running
	ungated *ungated // nil for a pod that was captured before it started
	// draining are captures let go whose connections live on.
	draining []Running

	// Owned by run.
	released    bool
	pause       time.Duration // between attempts
	notBefore   time.Time
	tried       int // facts.attempt at the last attempt
	searchSince time.Time
	left        Sandbox       // noted as left alone
	leavePause  time.Duration // between attempts to note it
	leaveAt     time.Time
}

func newWorker(p *Pods, uid string) *worker {
	return &worker{
		pods: p, uid: uid,
		wakeup:  make(chan struct{}, 1),
		waiters: make(chan struct{}),
		// Pending, since NotEnrolled is a statement about a pod that nobody has looked at yet.
		status: Status{UID: uid, State: StatePending, StateName: StatePending.String(), Since: time.Now()},
		tried:  -1,
	}
}

// wake has the worker look at its facts again.
func (w *worker) wake() {
	select {
	case w.wakeup <- struct{}{}:
	default:
	}
}

func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wakeup:
		case <-timer.C:
		}
		again, ended := w.step(ctx)
		if ended {
			return
		}
		timer.Reset(again)
	}
}

// step does what the facts ask for, and returns when to look again at the latest.
func (w *worker) step(ctx context.Context) (again time.Duration, ended bool) {
	f, o := w.observe()
	state, act := next(o)
	switch act {
	case actCapture:
		return w.capture(ctx, f), false
	case actRelease:
		return w.release(ctx), false
	case actClose:
		w.close()
		return 0, false
	case actForget:
		if err := w.pods.config.Dataplane.Forget(w.uid); err != nil {
			w.log().Warn("pins of a pod that is gone remain", "error", err)
			return retryMax, false
		}
		w.log().Info("pins of a pod that is gone removed")
		return 0, false
	case actEnd:
		return 0, w.end()
	}
	w.report(state, f.reason)
	if o.running || len(w.draining) > 0 {
		w.closeDrained(o)
		if !o.running {
			w.leave(f)
		}
		return sandboxCheck, false
	}
	return w.leave(f), false
}

func (w *worker) observe() (facts, observation) {
	pinned := w.isPinned()
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	if w.status.State != StateWithdrawing {
		w.facts.granted = false
	}
	f := w.facts
	o := observation{
		alive: f.alive, mode: f.mode, granted: f.granted,
		running: w.running != nil, pinned: pinned, released: w.released,
	}
	if o.running {
		moved := f.sandbox != nil && f.sandbox.Path != w.sandbox.Path
		o.sandboxGone = moved || f.ended == w.sandbox.Path || !w.pods.isThere(w.sandbox)
	}
	return f, o
}

func (w *worker) isPinned() bool {
	for _, uid := range w.pods.config.Dataplane.Pinned() {
		if uid == w.uid {
			return true
		}
	}
	return false
}

// capture finds the pod's sandbox and starts it.
func (w *worker) capture(ctx context.Context, f facts) time.Duration {
	if wait := time.Until(w.notBefore); wait > 0 && f.attempt == w.tried {
		return wait
	}
	if f.attempt != w.tried {
		w.tried, w.pause = f.attempt, 0
	}
	sandbox, err := w.find(f)
	if err != nil {
		return w.notFound(f, err)
	}
	w.searchSince = time.Time{}
	w.report(StateCapturing, "")
	dns, understood := dnsCapture(f.dnsCapture)
	if !understood {
		w.log().Warn("annotation not understood: DNS is captured, as without it", "annotation", DNSCaptureAnnotation, "value", f.dnsCapture, "want", "true or false")
	}
	pinned := w.isPinned()
	target := Target{UID: w.uid, Namespace: f.namespace, Name: f.name, ServiceAccount: f.serviceAccount, Sandbox: sandbox, DNS: dns,
		Serving: time.Since(f.told) > cniproto.AddTimeout && !pinned}
	began := time.Now()
	running, err := w.pods.start(ctx, target)
	if err != nil {
		if ctx.Err() != nil {
			return idle
		}
		w.log().Warn("capture failed", "error", err, "netns", sandbox.Path, "took", time.Since(began))
		return w.fail(coded(err, "CaptureFailed"), retryMin, retryMax)
	}
	w.pods.mu.Lock()
	w.running, w.sandbox = running, sandbox
	late := w.startedUngatedLocked(f, sandbox, pinned, time.Now())
	if late != nil {
		w.ungated = late
	}
	w.pods.mu.Unlock()
	if late != nil {
		w.log().Error("pod ran uncaptured: it is enrolled, and started without the gate", "from", late.From, "until", late.Until)
	}
	w.released, w.pause, w.notBefore = false, 0, time.Time{}
	w.pods.requestSave()
	w.log().Info("pod captured", "netns", sandbox.Path, "addresses", sandbox.IPs, "took", time.Since(began))
	return 0
}

func (w *worker) find(f facts) (Sandbox, error) {
	if f.sandbox != nil && w.pods.isThere(*f.sandbox) {
		return *f.sandbox, nil
	}
	if len(f.ips) == 0 {
		return Sandbox{}, errNoNamespace
	}
	return w.pods.find(w.uid, f)
}

func (w *worker) notFound(f facts, err error) time.Duration {
	if !errors.Is(err, errNoNamespace) {
		code := "NetNSUnreadable"
		if _, ok := errors.AsType[*ambiguousError](err); ok {
			code = "AmbiguousNetNS"
		}
		return w.fail(code+": "+err.Error(), searchMax, retryMax)
	}
	if len(f.ips) == 0 {
		w.report(StatePending, "NoSandbox: the pod has no network yet")
		return idle
	}
	if w.searchSince.IsZero() {
		w.searchSince = time.Now()
	}
	reason := "NetNSNotFound: " + err.Error()
	if time.Since(w.searchSince) > searchPatience {
		return w.fail(reason, searchMax, searchMax)
	}
	w.report(StatePending, reason)
	return w.backOff(searchMin, searchMax)
}

func (w *worker) fail(reason string, least, most time.Duration) time.Duration {
	again := w.backOff(least, most)
	w.report(StateFailed, reason)
	return again
}

func (w *worker) backOff(least, most time.Duration) time.Duration {
	w.pause = min(max(2*w.pause, least), most)
	w.notBefore = time.Now().Add(w.pause)
	return w.pause
}

func (w *worker) release(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := w.running.Release(ctx); err != nil {
		w.log().Warn("release of captured pod incomplete", "error", err)
		return retryMin
	}
	w.pods.mu.Lock()
	w.draining = append(w.draining, w.running)
	w.running = nil
	w.facts.granted = false
	w.pods.mu.Unlock()
	w.released = true
	w.pods.requestSave()
	w.log().Info("pod released")
	return 0
}

// close ends a capture whose sandbox is gone.
func (w *worker) close() {
	for _, running := range w.captures() {
		if err := running.Close(); err != nil {
			w.log().Warn("close of captured pod incomplete", "error", err)
		}
	}
	w.pods.mu.Lock()
	w.running, w.draining, w.ungated = nil, nil, nil
	if w.facts.sandbox != nil && w.facts.sandbox.Path == w.sandbox.Path {
		w.facts.sandbox = nil
	}
	w.pods.mu.Unlock()
	w.released, w.pause, w.notBefore = false, 0, time.Time{}
	w.pods.requestSave()
	w.log().Info("capture ended with its sandbox", "netns", w.sandbox.Path)
}

// closeDrained cuts connections that outlived the sandbox of a released pod.
func (w *worker) closeDrained(o observation) {
	if !o.running && len(w.draining) > 0 && !w.pods.isThere(w.sandbox) {
		w.close()
	}
}

// captures returns what the worker holds of the data plane.
func (w *worker) captures() []Running {
	all := append([]Running(nil), w.draining...)
	if w.running != nil {
		all = append(all, w.running)
	}
	return all
}

// end removes a worker with nothing left to watch over, unless the pod came back.
func (w *worker) end() bool {
	if len(w.draining) > 0 {
		w.close()
	}
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	if w.facts.alive {
		w.wake()
		return false
	}
	delete(w.pods.workers, w.uid)
	w.pods.requestSave()
	w.status.State = StateGone
	close(w.waiters)
	w.waiters = nil
	w.pods.signal()
	return true
}

func (w *worker) log() *slog.Logger {
	w.pods.mu.Lock()
	defer w.pods.mu.Unlock()
	return w.pods.logger.With("pod", w.facts.name, "namespace", w.facts.namespace, "uid", w.uid)
}
