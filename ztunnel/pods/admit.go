package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// refusal is why the gate does not let a pod start: 503 where the answer may be
// another one soon, which the kubelet waits for either way.
type refusal struct {
	status  int
	problem cniproto.Problem
}

func (r *refusal) Error() string { return r.problem.Code + ": " + r.problem.Message }

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status: status, problem: cniproto.Problem{Code: code, Message: fmt.Sprintf(format, args...)}}
}

// liveTimeout bounds one question to Kubernetes that the gate waits for.
const liveTimeout = 3 * time.Second

// admit decides about a new sandbox. It returns once the pod may start:
// captured, or not enrolled. An enrolled pod that is not captured, and one of
// which that cannot be told, may not.
func (p *Pods) admit(ctx context.Context, request cniproto.AddRequest) (captured bool, err error) {
	if captured, err = p.decide(ctx, request); err == nil && !captured {
		p.leaveNew(request)
	}
	return captured, err
}

func (p *Pods) decide(ctx context.Context, request cniproto.AddRequest) (captured bool, err error) {
	if p.neverHeld(request.Namespace) {
		return false, nil
	}
	pod, namespace, err := p.lookup(ctx, request)
	if r, silent := errors.AsType[*refusal](err); silent && r.status == http.StatusServiceUnavailable {
		return p.admitFromMemory(ctx, request, r)
	}
	if err != nil {
		return false, err
	}
	mode, reason := p.enrolmentOf(pod, namespace)
	switch mode {
	case NotEnrolled, Misunderstood:
		return false, nil
	case Undetermined:
		return false, refuse(http.StatusServiceUnavailable, "EnrolmentUnknown", "%s", reason)
	}
	sandbox, err := p.sandboxOf(request)
	if err != nil {
		return false, err
	}
	w := p.learn(pod, namespace)
	if w == nil {
		return true, notReady()
	}
	return true, p.captureNow(ctx, w, sandbox)
}

func notReady() *refusal {
	return refuse(http.StatusServiceUnavailable, "NotReady", "ztunnel is starting, or stopping, or the pod has ended")
}

// admitFromMemory decides where Kubernetes does not answer, and this process has
// not heard of the pod from it yet: by what the last process knew. A pod that
// was of the mesh is captured in its new sandbox; one of a namespace outside of
// the mesh may start, as it might with no ztunnel there. silence is the answer
// otherwise.
func (p *Pods) admitFromMemory(ctx context.Context, request cniproto.AddRequest, silence *refusal) (captured bool, err error) {
	w := p.remembered(request)
	if w == nil {
		p.mu.Lock()
		known := p.isSynced
		p.mu.Unlock()
		if open, _, _ := p.enrolled.Opens(request.Namespace); open && !known {
			return false, nil
		}
		return false, silence
	}
	sandbox, err := p.sandboxOf(request)
	if err != nil {
		return false, err
	}
	return true, p.captureNow(ctx, w, sandbox)
}

// remembered finds the pod that the kubelet names among those that the last
// process left, and has it captured again.
func (p *Pods) remembered(request cniproto.AddRequest) *worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[request.UID]
	if !ok || !w.facts.remembered || !w.facts.alive || w.facts.namespace != request.Namespace || w.facts.name != request.Name {
		return nil
	}
	w.facts.mode = Enrolled
	return w
}

// lookup finds the pod and its namespace. What the informers hold may be late:
// a pod that they do not know, and a namespace that does not ask for the mesh,
// are asked for again.
func (p *Pods) lookup(ctx context.Context, request cniproto.AddRequest) (*corev1.Pod, *corev1.Namespace, error) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	pod := p.watch.pod(request.Namespace, request.Name)
	if pod == nil || !isPod(pod, request.UID) {
		live, err := p.config.Client.Pod(ctx, request.Namespace, request.Name)
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil, refuse(http.StatusNotFound, "PodNotFound", "Kubernetes does not know pod %s/%s", request.Namespace, request.Name)
		case err != nil:
			return nil, nil, refuse(http.StatusServiceUnavailable, "EnrolmentUnknown", "get pod %s/%s from Kubernetes: %v", request.Namespace, request.Name, err)
		case !isPod(live, request.UID):
			return nil, nil, refuse(http.StatusNotFound, "PodNotFound", "pod %s/%s is another one by now: its UID is %s, not %s", request.Namespace, request.Name, live.UID, request.UID)
		}
		pod = live
	}
	namespace := p.watch.namespace(request.Namespace)
	if mode, _ := p.enrolmentOf(pod, namespace); mode == Enrolled {
		return pod, namespace, nil
	}
	live, err := p.config.Client.Namespace(ctx, request.Namespace)
	if err == nil {
		return pod, live, nil
	}
	if namespace == nil {
		return nil, nil, refuse(http.StatusServiceUnavailable, "EnrolmentUnknown", "get namespace %s from Kubernetes: %v", request.Namespace, err)
	}
	return pod, namespace, nil
}

// isPod tells whether an object is the pod that the kubelet means by a UID; a
// static pod's object has another one.
func isPod(pod *corev1.Pod, uid string) bool {
	return uid == "" || string(pod.UID) == uid || pod.Annotations[mirrorAnnotation] == uid
}

func (p *Pods) sandboxOf(request cniproto.AddRequest) (Sandbox, error) {
	sandbox := Sandbox{ContainerID: request.ContainerID}
	for _, address := range request.Addresses {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return Sandbox{}, refuse(http.StatusBadRequest, "BadRequest", "address %q: %v", address, err)
		}
		sandbox.IPs = append(sandbox.IPs, ip.Unmap())
	}
	if len(sandbox.IPs) == 0 {
		return Sandbox{}, refuse(http.StatusBadRequest, "NoAddresses", "the plugins before %s in the CNI chain gave the pod no address", cniproto.PluginType)
	}
	path, err := p.localPath(request.NetNS)
	if err != nil {
		return Sandbox{}, err
	}
	sandbox.Path = path
	inode, err := p.config.Namespaces.Inode(path)
	if err != nil {
		return Sandbox{}, refuse(http.StatusInternalServerError, "NetNSMissing", "the pod's network namespace %s is not visible to ztunnel: %v", path, err)
	}
	sandbox.Inode = inode
	return sandbox, nil
}

// localPath is where this process finds a namespace that the container runtime
// names by a path of the node.
func (p *Pods) localPath(netns string) (string, error) {
	switch filepath.Dir(filepath.Clean(netns)) {
	case "/run/netns", "/var/run/netns", filepath.Clean(p.config.NetNSDir):
		return filepath.Join(p.config.NetNSDir, filepath.Base(netns)), nil
	}
	return "", refuse(http.StatusBadRequest, "NetNSUnsupported", "the container runtime keeps the pod's network namespace at %q, not in /run/netns", netns)
}

// captureNow hands a sandbox to the pod's worker and waits for the outcome.
func (p *Pods) captureNow(ctx context.Context, w *worker, sandbox Sandbox) error {
	p.mu.Lock()
	w.facts.sandbox, w.facts.told = &sandbox, time.Now()
	w.facts.attempt++
	attempt := w.facts.attempt
	w.wake()
	p.mu.Unlock()
	for {
		p.mu.Lock()
		status, changed := w.status, w.waiters
		there := w.running != nil && w.sandbox.Path == sandbox.Path
		p.mu.Unlock()
		switch {
		case there && status.State == StateCaptured:
			return nil
		case status.State == StateFailed && status.attempt >= attempt:
			return &refusal{status: http.StatusInternalServerError, problem: problemOf(status.Reason)}
		case changed == nil:
			return refuse(http.StatusServiceUnavailable, "PodNotFound", "the pod ended before it was captured")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return refuse(http.StatusServiceUnavailable, "CaptureTimeout", "the pod is %s: %v", status.State, ctx.Err())
		}
	}
}

func problemOf(reason string) cniproto.Problem {
	code, message, _ := cutReason(reason)
	return cniproto.Problem{Code: code, Message: message}
}

// check tells whether a sandbox that was let start is still as it ought to be.
func (p *Pods) check(request cniproto.AddRequest) error {
	pod := p.watch.pod(request.Namespace, request.Name)
	if pod == nil || p.neverHeld(request.Namespace) {
		return nil
	}
	if mode, _ := p.enrolmentOf(pod, p.watch.namespace(request.Namespace)); mode != Enrolled {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[string(pod.UID)]
	if !ok || w.running == nil {
		return refuse(http.StatusConflict, "NotCaptured", "the pod is enrolled and not captured")
	}
	return nil
}

// sandboxEnded takes the CNI plugin's word that a sandbox is being removed: its
// processes have ended, so nothing is cut that was alive.
func (p *Pods) sandboxEnded(request cniproto.DelRequest) {
	path, err := p.localPath(request.NetNS)
	if err != nil {
		return // without a path there is nothing to end; the sandbox's absence will be seen
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		told := w.facts.sandbox != nil && w.facts.sandbox.Path == path
		if told {
			w.facts.sandbox = nil
		}
		if told || (w.running != nil && w.sandbox.Path == path) {
			w.facts.ended = path
			w.wake()
		}
	}
}

func asRefusal(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	return refuse(http.StatusInternalServerError, "Internal", "%v", err)
}
