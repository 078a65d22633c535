package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
)

const (
	// pause between passes: no route is written more often than that.
	pause = time.Second
	// lookAgain is how often all are compared although nothing happened.
	lookAgain = 30 * time.Second
)

// Objects are the routes as they are in Kubernetes.
type Objects interface {
	GatewayAPI() (watch.GatewayObjects, error)
}

// Writer writes the status of one of the four kinds of routes, as an object whose
// resource version must still be the current one.
type Writer interface {
	UpdateRouteStatus(ctx context.Context, route metav1.Object) error
}

// Config is what a [Keeper] needs.
type Config struct {
	Controller gateway.GatewayController
	Objects    Objects
	Writer     Writer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Keeper keeps the status of routes.
type Keeper struct {
	// fixed after New
	cfg     Config
	writes  *prometheus.CounterVec
	changed chan struct{} // capacity 1

	mu       sync.Mutex
	outcomes []*translate.Route // of the last publication; guarded by mu
}

// New makes a keeper that writes nothing yet.
func New(cfg Config) *Keeper {
	k := &Keeper{
		cfg: cfg, changed: make(chan struct{}, 1),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_route_status_writes_total", Help: "Writes of the status of routes, by kind and result.",
		}, []string{"kind", "result"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(k.writes)
	}
	return k
}

// Published tells what became of the routes in the publication that is out now.
func (k *Keeper) Published(outcomes []*translate.Route) {
	k.mu.Lock()
	k.outcomes = outcomes
	k.mu.Unlock()
	k.again()
}

func (k *Keeper) again() {
	select {
	case k.changed <- struct{}{}:
	default: // told already
	}
}

// RunLeader keeps every status until ctx ends.
func (k *Keeper) RunLeader(ctx context.Context) error {
	k.again()
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-ticker.C:
		}
		if err := k.pass(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Logger.Warn("keep status of routes", "error", err)
			k.again() // after the pause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// pass compares every route's status with what it shall be, and writes those that
// differ. A route that names no parent of ours keeps nothing of ours.
func (k *Keeper) pass(ctx context.Context) error {
	k.mu.Lock()
	outcomes := k.outcomes
	k.mu.Unlock()
	routes, err := k.cfg.Objects.GatewayAPI()
	if err != nil {
		return err
	}
	byKey := make(map[string]*translate.Route, len(outcomes))
	for _, r := range outcomes {
		byKey[key(r.Kind, r.Namespace, r.Name)] = r
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	var errs []error
	each(routes, func(kind translate.RouteKind, o metav1.Object, status *gateway.RouteStatus) {
		r, ok := byKey[key(kind, o.GetNamespace(), o.GetName())]
		switch {
		case ok && (r.UID != o.GetUID() || r.Generation != o.GetGeneration()):
			return // the next publication knows
		case !ok:
			r = &translate.Route{Generation: o.GetGeneration()}
		}
		desired := describe(*status, k.cfg.Controller, r, now)
		if ctx.Err() != nil || equality.Semantic.DeepEqual(status.Parents, desired.Parents) || len(desired.Parents)+len(status.Parents) == 0 {
			return
		}
		err := k.cfg.Writer.UpdateRouteStatus(ctx, with(o, desired))
		k.count(kind, err)
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("update status of %s %s/%s: %w", kind, o.GetNamespace(), o.GetName(), err))
		}
	})
	return errors.Join(errs...)
}

func key(kind translate.RouteKind, namespace, name string) string {
	return string(kind) + " " + namespace + "/" + name
}

// each visits every route with its status.
func each(routes watch.GatewayObjects, visit func(kind translate.RouteKind, o metav1.Object, status *gateway.RouteStatus)) {
	for _, o := range routes.HTTPRoutes {
		visit(translate.HTTPRoute, o, &o.Status.RouteStatus)
	}
	for _, o := range routes.GRPCRoutes {
		visit(translate.GRPCRoute, o, &o.Status.RouteStatus)
	}
	for _, o := range routes.TLSRoutes {
		visit(translate.TLSRoute, o, &o.Status.RouteStatus)
	}
	for _, o := range routes.TCPRoutes {
		visit(translate.TCPRoute, o, &o.Status.RouteStatus)
	}
}

// with returns a copy of a route with another status.
func with(o metav1.Object, status gateway.RouteStatus) metav1.Object {
	switch o := o.(type) {
	case *gateway.HTTPRoute:
		next := o.DeepCopy()
		next.Status.RouteStatus = status
		return next
	case *gateway.GRPCRoute:
		next := o.DeepCopy()
		next.Status.RouteStatus = status
		return next
	case *gateway.TLSRoute:
		next := o.DeepCopy()
		next.Status.RouteStatus = status
		return next
	case *gateway.TCPRoute:
		next := o.DeepCopy()
		next.Status.RouteStatus = status
		return next
	}
	return o
}

func (k *Keeper) count(kind translate.RouteKind, err error) {
	result := "ok"
	if err != nil {
		if result = string(apierrors.ReasonForError(err)); result == "" {
			result = "error"
		}
	}
	k.writes.WithLabelValues(string(kind), result).Inc()
}
