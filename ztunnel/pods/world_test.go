package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/ztunnel/kube/kubetest"
)

// world is one node with its Kubernetes, its kernel, and the process under test.
type world struct {
	t          *testing.T
	dir        string
	client     *fake.Clientset
	apiDown    atomic.Bool
	namespaces *fakeNamespaces
	dataplane  *fakeDataplane

	pods *Pods
	stop func()
}

const thisNode = "n1"

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(), client: fake.NewClientset(),
		namespaces: &fakeNamespaces{all: map[string]Namespace{}},
		dataplane:  &fakeDataplane{pins: map[string]bool{}, running: map[string]*fakeRunning{}, broken: map[string]error{}, hanging: map[string]bool{}},
	}
	w.client.PrependReactor("*", "*", func(k8stesting.Action) (bool, runtime.Object, error) {
		if w.apiDown.Load() {
			return true, nil, apierrors.NewServiceUnavailable("the API server is down")
		}
		return false, nil, nil
	})
	w.client.PrependWatchReactor("*", func(k8stesting.Action) (bool, apiwatch.Interface, error) {
		if w.apiDown.Load() {
			return true, nil, apierrors.NewServiceUnavailable("the API server is down")
		}
		return false, nil, nil
	})
	t.Cleanup(func() {
		if w.stop != nil {
			w.stop()
		}
	})
	return w
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// start runs a process; stop ends it, and what it captured stays pinned.
func (w *world) start() {
	w.pods = New(Config{
		Node: thisNode, NeverHeld: []string{"ambit-system", "kube-system"}, Client: kubetest.Client{Interface: w.client}, Dataplane: w.dataplane, Namespaces: w.namespaces,
		NetNSDir: "/run/netns", SavedPath: w.file("pods.json"), EnrolmentPath: w.file("enrolment.json"), Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := w.pods.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	group.Go(func() {
		if err := w.pods.ServeCNI(ctx, w.file("cni.sock")); err != nil {
			w.t.Errorf("ServeCNI: %v", err)
		}
	})
	w.stop = func() {
		cancel()
		w.dataplane.unhang()
		group.Wait()
		w.dataplane.processEnded()
		w.stop = nil
	}
}

// eventually waits for what the workers bring about.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			w.t.Fatalf("not so after 10 s: %s\nstatuses: %+v\ncalls: %q", what, w.pods.Statuses(), w.dataplane.calls())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) status(uid string) (Status, bool) {
	for _, status := range w.pods.Statuses() {
		if status.UID == uid {
			return status, true
		}
	}
	return Status{}, false
}

// pod is a pod's object; its UID is NAMESPACE-NAME.
func (w *world) pod(namespace, name string) *corev1.Pod {
	pod, err := w.client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err == nil {
		return pod
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "-" + name)},
		Spec:       corev1.PodSpec{NodeName: thisNode, ServiceAccountName: "account"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func (w *world) put(pod *corev1.Pod) {
	w.t.Helper()
	api := w.client.CoreV1().Pods(pod.Namespace)
	_, err := api.Update(context.Background(), pod, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(context.Background(), pod, metav1.CreateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) label(namespace, mode string) {
	w.t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	switch mode {
	case "":
	case "removing":
		object.Labels = map[string]string{RemovingLabel: "true"}
	default:
		object.Labels = map[string]string{DataplaneModeLabel: mode}
	}
	api := w.client.CoreV1().Namespaces()
	_, err := api.Update(context.Background(), object, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(context.Background(), object, metav1.CreateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// fakeNamespaces is the kernel's side of network namespaces.
type fakeNamespaces struct {
	mu   sync.Mutex
	all  map[string]Namespace
	last uint64
}

func (f *fakeNamespaces) add(path string, created time.Time, ips []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.all[path] = Namespace{Path: path, Inode: f.last, Created: created, Addrs: ips}
}

func (f *fakeNamespaces) remove(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, path)
}

func (f *fakeNamespaces) Scan() ([]Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.all)), nil
}

func (f *fakeNamespaces) Inode(path string) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	namespace, ok := f.all[path]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return namespace.Inode, nil
}

// fakeDataplane remembers who is captured where. Its pins outlive processes.
type fakeDataplane struct {
	mu      sync.Mutex
	pins    map[string]bool
	running map[string]*fakeRunning
	broken  map[string]error
	hanging map[string]bool
	freed   chan struct{}
	log     []string
	left    map[string]bool // by path
}

type codedFake struct{ code string }

func (c codedFake) Code() string  { return c.code }
func (c codedFake) Error() string { return "as the test wants" }

func (d *fakeDataplane) note(format string, args ...any) {
	d.log = append(d.log, fmt.Sprintf(format, args...))
}

func (d *fakeDataplane) Start(ctx context.Context, target Target) (Running, error) {
	d.mu.Lock()
	if d.hanging[target.UID] {
		if d.freed == nil {
			d.freed = make(chan struct{})
		}
		freed := d.freed
		d.mu.Unlock()
		<-freed // whatever the context says: the kernel may not care
		return nil, errors.New("hung")
	}
	defer d.mu.Unlock()
	if err := d.broken[target.UID]; err != nil {
		d.note("failed %s", target.UID)
		return nil, err
	}
	if d.running[target.UID] != nil {
		d.note("doubled %s", target.UID)
		return nil, errors.New("captured already")
	}
	delete(d.pins, target.UID)
	r := &fakeRunning{dataplane: d, target: target}
	d.running[target.UID] = r
	d.note("start %s %s as %s", target.UID, target.Sandbox.Path, target.ServiceAccount)
	return r, nil
}

func (d *fakeDataplane) unhang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.hanging)
	if d.freed != nil {
		close(d.freed)
		d.freed = nil
	}
}

func (d *fakeDataplane) processEnded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid := range d.running {
		d.pins[uid] = true
	}
	clear(d.running)
}

func (d *fakeDataplane) Pinned() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.pins))
}

func (d *fakeDataplane) Leave(sandbox Sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left == nil {
		d.left = map[string]bool{}
	}
	d.left[sandbox.Path] = true
	return nil
}

func (d *fakeDataplane) Forget(uid string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pins, uid)
	d.note("forget %s", uid)
	return nil
}

func (d *fakeDataplane) calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// sandboxOf returns where a pod is captured; empty if it is not.
func (d *fakeDataplane) sandboxOf(uid string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.running[uid]; r != nil {
		return r.target.Sandbox.Path
	}
	return ""
}

type fakeRunning struct {
	dataplane *fakeDataplane
	target    Target
}

func (r *fakeRunning) end(how string) {
	d := r.dataplane
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("%s %s", how, r.target.UID)
	if d.running[r.target.UID] == r {
		delete(d.running, r.target.UID)
	}
}

func (r *fakeRunning) Release(context.Context) error { r.end("release"); return nil }
func (r *fakeRunning) Close() error                  { r.end("close"); return nil }

func (r *fakeRunning) Drain(context.Context) {
	r.dataplane.mu.Lock()
	defer r.dataplane.mu.Unlock()
	r.dataplane.note("drain %s", r.target.UID)
}
