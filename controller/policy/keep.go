package policy

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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
)

const (
	// settle is how long a pass waits for what comes together with its cause: the
	// acknowledgements of a publication.
	settle = 50 * time.Millisecond
	// pause between passes: no policy is written more often than that.
	pause = time.Second
	// lookAgain is how often all are compared although nothing happened; it also
	// ends the grace of nodes that are gone.
	lookAgain = 15 * time.Second
)

// Objects are the policies as they are in Kubernetes.
type Objects interface {
	Policies() (watch.PolicyObjects, error)
}

// Config is what a [Keeper] needs.
type Config struct {
	Client     *Client
	Objects    Objects
	Proxies    Proxies
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Keeper keeps the status of policies.
type Keeper struct {
	// fixed after New
	cfg     Config
	writes  *prometheus.CounterVec
	changed chan struct{} // capacity 1

	mu       sync.Mutex
	outcomes []*translate.Policy // of the last publication; guarded by mu

	// owned by RunLeader
	memory  memory
	written map[string]object
	// began is when this term did: for a moment after it, what the leader before
	// wrote counts, since no proxy has had the time to say so again.
	began time.Time
}

// object is any policy, with its status.
type object interface {
	metav1.Object
	PolicyStatus() *v1alpha1.PolicyStatus
}

// New makes a keeper that writes nothing yet.
func New(cfg Config) *Keeper {
	k := &Keeper{
		cfg: cfg, changed: make(chan struct{}, 1),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_policy_status_writes_total", Help: "Writes of the status of policies, by kind and result.",
		}, []string{"kind", "result"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(k.writes)
	}
	return k
}

// Published tells what became of the policies in the publication that is out now.
func (k *Keeper) Published(outcomes []*translate.Policy) {
	k.mu.Lock()
	k.outcomes = outcomes
	k.mu.Unlock()
	k.Changed()
}

// Changed tells that nodes may have come further. It never blocks.
func (k *Keeper) Changed() {
	select {
	case k.changed <- struct{}{}:
	default: // told already
	}
}

// RunLeader keeps every status until ctx ends.
func (k *Keeper) RunLeader(ctx context.Context) error {
	// Whoever led before may have written since.
	k.memory, k.written, k.began = make(memory), make(map[string]object), time.Now()
	k.Changed()
	timer := time.NewTimer(lookAgain)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-timer.C:
		}
		if !sleep(ctx, settle) {
			return nil
		}
		again, err := k.pass(ctx)
		if err != nil && ctx.Err() == nil {
			k.cfg.Logger.Warn("keep status of policies", "error", err)
			k.Changed() // after the pause
		}
		timer.Reset(again)
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// pass compares every policy's status with what it shall be, and writes those
// that differ. It returns how soon to look again though nothing happens.
func (k *Keeper) pass(ctx context.Context) (again time.Duration, err error) {
	k.mu.Lock()
	outcomes := k.outcomes
	k.mu.Unlock()
	objects, err := k.cfg.Objects.Policies()
	if err != nil {
		return lookAgain, err
	}
	byKey := index(objects)
	now := time.Now()
	if now.Sub(k.began) < grace {
		for _, p := range outcomes {
			if o, ok := byKey[p.ID()]; ok && o.GetUID() == p.UID && wasInForce(o, p) {
				k.memory.remember(p, k.began)
			}
		}
	}
	progress := k.memory.measure(outcomes, k.cfg.Proxies, now)
	again = lookAgain
	var errs []error
	for _, p := range outcomes {
		if late := progress[p].nextLate; !late.IsZero() {
			again = min(again, late.Sub(now))
		}
		key := p.ID()
		o, ok := byKey[key]
		if !ok || o.GetUID() != p.UID {
			continue // deleted, or made anew: the next publication knows
		}
		if last, ok := k.written[key]; ok && last.GetUID() == p.UID && newer(last, o) {
			o = last
		}
		if o.PolicyStatus().ObservedGeneration > p.Generation {
			continue
		}
		desired := describe(*o.PolicyStatus(), p, progress[p], metav1.NewTime(now.Truncate(time.Second)))
		if equality.Semantic.DeepEqual(*o.PolicyStatus(), desired) {
			continue
		}
		written, err := k.cfg.Client.updateStatus(ctx, o, desired)
		k.count(p.Kind, err)
		switch {
		case ctx.Err() != nil:
			return again, ctx.Err()
		case err != nil && !apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("update status of %s: %w", key, err))
		case err == nil:
			k.written[key] = written
		}
	}
	for key := range k.written {
		if _, ok := byKey[key]; !ok {
			delete(k.written, key)
		}
	}
	return again, errors.Join(errs...)
}

// wasInForce tells whether an object's status says that this very version is in
// force everywhere.
func wasInForce(o object, p *translate.Policy) bool {
	status := o.PolicyStatus()
	return status.ObservedGeneration == p.Generation && status.Version == p.Version &&
		meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionInForce)
}

func index(objects watch.PolicyObjects) map[string]object {
	byKey := make(map[string]object)
	add := func(kind translate.PolicyKind, o object) {
		byKey[string(kind)+" "+o.GetNamespace()+"/"+o.GetName()] = o
	}
	for _, o := range objects.PeerAuthentications {
		add(translate.PeerAuthentication, o)
	}
	for _, o := range objects.AuthorizationPolicies {
		add(translate.AuthorizationPolicy, o)
	}
	for _, o := range objects.EgressPolicies {
		add(translate.EgressPolicy, o)
	}
	for _, o := range objects.RequestAuthentications {
		add(translate.RequestAuthentication, o)
	}
	return byKey
}

// newer says whether a has a later version than b. Versions that cannot be
// compared count as seen: a conflict then says so.
func newer(a, b object) bool {
	order, err := resourceversion.CompareResourceVersion(a.GetResourceVersion(), b.GetResourceVersion())
	return err == nil && order > 0
}

func (k *Keeper) count(kind translate.PolicyKind, err error) {
	result := "ok"
	if err != nil {
		if result = string(apierrors.ReasonForError(err)); result == "" {
			result = "error"
		}
	}
	k.writes.WithLabelValues(string(kind), result).Inc()
}
