package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	gwapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/gatewayapi"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
	"github.com/ambit-mesh/ambit/internal/binding"
)

const (
	// manager of the fields that are applied.
	manager = "ambit-controller"
	// pause between passes.
	pause = 500 * time.Millisecond
	// repairEvery is how often all objects are applied although nothing happened:
	// what somebody changed of them is put right.
	repairEvery = 30 * time.Second
)

// Objects are what is there in Kubernetes.
type Objects interface {
	Objects() (watch.Objects, error)
}

// Config is what a [Reconciler] needs.
type Config struct {
	Settings Settings
	Client   kubernetes.Interface
	Gateways *gatewayapi.Client
	Objects  Objects
	// InForce tells whether a binding is acknowledged everywhere: clients go through
	// the waypoint, and nobody else is let in.
	InForce func(*translate.Bound) bool
	// Ready tells whether its waypoint can do its part: a reason of
	// binding.ReadyCondition, or empty while nobody knows.
	Ready func(*translate.Bound) string
	// Roots of the mesh, PEM.
	Roots      func() []string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Reconciler runs waypoints.
type Reconciler struct {
	// fixed after New
	cfg     Config
	writes  *prometheus.CounterVec
	changed chan struct{} // capacity 1

	mu        sync.Mutex
	bound     []*translate.Bound // of the last publication; guarded by mu
	published bool               // there was one; guarded by mu

	// owned by RunLeader
	applied map[string]string // what was applied last, by Gateway and object
	repair  time.Time         // when all is applied again
}

// New makes a reconciler that writes nothing yet.
func New(cfg Config) *Reconciler {
	r := &Reconciler{
		cfg: cfg, changed: make(chan struct{}, 1),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_gateway_writes_total", Help: "Writes of Gateways' status and of what runs for them, by kind and result.",
		}, []string{"kind", "result"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(r.writes)
	}
	return r
}

// Published tells what is bound in the publication that is out now.
func (r *Reconciler) Published(bound []*translate.Bound) {
	r.mu.Lock()
	r.bound, r.published = bound, true
	r.mu.Unlock()
	r.again()
}

// Settled tells that some binding came into force, or is ready, or is it no longer.
func (r *Reconciler) Settled() { r.again() }

func (r *Reconciler) again() {
	select {
	case r.changed <- struct{}{}:
	default: // told already
	}
}

// RunLeader runs waypoints until ctx ends.
func (r *Reconciler) RunLeader(ctx context.Context) error {
	r.applied, r.repair = make(map[string]string), time.Time{}
	r.again()
	ticker := time.NewTicker(repairEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-ticker.C:
		}
		if err := r.pass(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Warn("run waypoints", "error", err)
			r.again() // after the pause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// pass applies what is wanted of every Gateway, and says what became of it.
func (r *Reconciler) pass(ctx context.Context) error {
	objects, err := r.cfg.Objects.Objects()
	if err != nil {
		return err
	}
	if now := time.Now(); now.After(r.repair) {
		clear(r.applied)
		r.repair = now.Add(repairEvery)
	}
	r.mu.Lock()
	bound, published := r.bound, r.published
	r.mu.Unlock()
	var errs []error
	if waypoints := slices.ContainsFunc(objects.Gateways, binding.IsWaypoint); waypoints || len(objects.GatewayClasses) > 0 {
		errs = append(errs, r.class(ctx, objects.GatewayClasses))
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	if published {
		errs = append(errs, r.services(ctx, objects.Services, bound, now))
	}
	roots := strings.Join(r.cfg.Roots(), "")
	for _, g := range objects.Gateways {
		if !binding.IsWaypoint(g) || g.DeletionTimestamp != nil {
			continue
		}
		o := observe(g, objects, bound)
		if o.invalid == "" {
			if err := r.apply(ctx, g, roots); err != nil {
				o.failed = err.Error()
				errs = append(errs, fmt.Errorf("run waypoint %s/%s: %w", g.Namespace, g.Name, err))
			}
		}
		status := describe(g, o, now)
		if equality.Semantic.DeepEqual(g.Status, status) {
			continue
		}
		next := g.DeepCopy()
		next.Status = status
		_, err := r.cfg.Gateways.Gateways(g.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
		r.count("Gateway", err)
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("update status of Gateway %s/%s: %w", g.Namespace, g.Name, err))
		}
	}
	return errors.Join(errs...)
}

// class accepts our GatewayClass, which is made where the cluster knows the kind.
func (r *Reconciler) class(ctx context.Context, classes []*gwapi.GatewayClass) error {
	i := slices.IndexFunc(classes, func(c *gwapi.GatewayClass) bool { return c.Name == binding.Class })
	if i < 0 {
		class := &gwapi.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: binding.Class, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}}}
		class.Spec.ControllerName = gatewayapi.Controller
		class.Spec.Description = new("Waypoints of the Ambit mesh")
		_, err := r.cfg.Gateways.GatewayClasses().Create(ctx, class, metav1.CreateOptions{})
		r.count("GatewayClass", err)
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	class := classes[i]
	if class.Spec.ControllerName != gatewayapi.Controller {
		return fmt.Errorf("GatewayClass %s: spec.controllerName is %q, not %q: delete it, and it is made anew", class.Name, class.Spec.ControllerName, gatewayapi.Controller)
	}
	next := class.DeepCopy()
	meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{
		Type: string(gwapi.GatewayClassConditionStatusAccepted), Status: metav1.ConditionTrue, Reason: string(gwapi.GatewayClassReasonAccepted),
		ObservedGeneration: class.Generation,
	})
	if equality.Semantic.DeepEqual(class.Status, next.Status) {
		return nil
	}
	_, err := r.cfg.Gateways.GatewayClasses().UpdateStatus(ctx, next, metav1.UpdateOptions{})
	r.count("GatewayClass", err)
	return err
}

// observe finds out how far a Gateway's waypoint is.
func observe(g *gwapi.Gateway, objects watch.Objects, bound []*translate.Bound) observed {
	o := observed{invalid: check(g)}
	for _, p := range objects.Pods {
		if p.Namespace != g.Namespace || p.Labels[binding.GatewayLabel] != g.Name || p.DeletionTimestamp != nil {
			continue
		}
		o.all++
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				o.ready++
			}
		}
	}
	for _, s := range objects.Services {
		if s.Namespace == g.Namespace && s.Name == g.Name {
			o.addresses = slices.DeleteFunc(slices.Clone(s.Spec.ClusterIPs), func(ip string) bool { return ip == corev1.ClusterIPNone })
		}
	}
	for _, b := range bound {
		if b.Leaving || b.Waypoint != (types.NamespacedName{Namespace: g.Namespace, Name: g.Name}) {
			continue
		}
		if b.Problem != "" {
			o.refusals = append(o.refusals, fmt.Sprintf("%s %s/%s: %s", b.Kind, b.Namespace, b.Name, b.Problem))
			continue
		}
		o.bound++
	}
	slices.Sort(o.refusals)
	return o
}

// apply a Gateway's objects, those that are not as they were applied last.
func (r *Reconciler) apply(ctx context.Context, g *gwapi.Gateway, roots string) error {
	w, err := objectsOf(g, roots, r.cfg.Settings)
	if err != nil {
		return err
	}
	return w.each(func(resource string, o runtime.Object, object metav1.Object) error {
		content, err := json.Marshal(o)
		if err != nil {
			return err
		}
		// For this very Gateway: what was applied for one before it may be gone with its namespace.
		key := string(g.UID) + " " + resource + " " + object.GetNamespace() + "/" + object.GetName()
		if r.applied[key] == string(content) {
			return nil
		}
		kind := o.GetObjectKind().GroupVersionKind()
		client := r.cfg.Client.CoreV1().RESTClient()
		switch kind.Group {
		case "apps":
			client = r.cfg.Client.AppsV1().RESTClient()
		case "policy":
			client = r.cfg.Client.PolicyV1().RESTClient()
		}
		err = client.Patch(types.ApplyYAMLPatchType).Namespace(object.GetNamespace()).Resource(resource).Name(object.GetName()).
			Param("fieldManager", manager).Param("force", "true").Body(content).Do(ctx).Error()
		r.count(kind.Kind, err)
		if err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", kind.Kind, object.GetNamespace(), object.GetName(), err)
		}
		r.applied[key] = string(content)
		return nil
	})
}

func (r *Reconciler) count(kind string, err error) {
	result := "ok"
	if err != nil {
		if result = string(apierrors.ReasonForError(err)); result == "" {
			result = "error"
		}
	}
	r.writes.WithLabelValues(kind, result).Inc()
}
