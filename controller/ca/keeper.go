package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// keepInterval is how soon a request or a changed plug-in is seen.
	keepInterval = 2 * time.Second
	// keepPause is how long answers of nodes are gathered.
	keepPause = 250 * time.Millisecond
	// rootRenewAfter is the part of a root's life after which the next one comes.
	rootRenewAfter = 0.8
)

// Nodes are the data planes, as far as trust concerns them.
type Nodes interface {
	// Waiting returns the nodes that are not known to work with exactly this
	// bundle, and those among them that are not connected.
	Waiting(Bundle) (waiting, away []string)
	// Used tells whether a node may hold a certificate that chains to the root of
	// this fingerprint, which signs no more since then.
	Used(fingerprint string, since time.Time) bool
}

// KeeperConfig is what a [Keeper] needs.
type KeeperConfig struct {
	Client    kubernetes.Interface
	Namespace string
	// TrustDomain that issuers must be able to sign for.
	TrustDomain string
	Root        *RootStore
	Authority   *Authority
	Nodes       Nodes
	// Published is called when the bundle is another one.
	Published func()
	// Now is the clock, time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Keeper decides what is signed with and which roots the mesh trusts, and
// changes both without cutting anybody off.
type Keeper struct {
	cfg     KeeperConfig
	secret  stateSecret
	metrics keeperMetrics
	wake    chan struct{}

	mu      sync.Mutex // guards the rest
	state   state      // in use; its issuer is nil before Open returned
	problem error      // what is wrong now
	logged  string     // its text, so that each trouble is logged once
	// owned by the leader, under mu for Status
	waiting   []string
	published string // roots in the ConfigMap, as last written or read
}

// NewKeeper returns a keeper that has read nothing yet.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Keeper{
		cfg: cfg, secret: stateSecret{cfg.Client, cfg.Namespace}, metrics: newKeeperMetrics(cfg.Registerer),
		wake: make(chan struct{}, 1), problem: errNoIssuer,
	}
}

// Problem returns what is wrong with what signs, nil when all is well.
func (k *Keeper) Problem() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem
}

// Changed has the leader look again: nodes answered, perhaps.
func (k *Keeper) Changed() {
	k.mu.Lock()
	steady := len(k.state.bundle) < 2
	k.mu.Unlock()
	if steady {
		return // nothing waits for nodes
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Open waits until there is something to sign with, and has the authority use
// it. [Keeper.Problem] tells what it waits for.
func (k *Keeper) Open(ctx context.Context) error {
	for {
		err := k.load(ctx)
		k.report(err)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(openRetry):
		}
	}
}

// load takes over the state that is kept, or makes the first one.
func (k *Keeper) load(ctx context.Context) error {
	now := k.cfg.Now()
	found, err := k.secret.read(ctx, now)
	switch {
	case err == nil:
		// With the root of the mesh's own issuer lost, a person has to look: also
		// while the issuer could go on for a time.
		if found.issuer.origin == selfManaged {
			if _, err := k.cfg.Root.opened(ctx, true); err != nil {
				return err
			}
		}
		k.use(found.state)
		return nil
	case isDamaged(err):
		return k.stateProblem(err)
	case !apierrors.IsNotFound(err):
		return k.unreadable(StateSecretName, err)
	}
	want, err := k.want(ctx, state{}, request{})
	if err != nil {
		return err
	}
	first := state{bundle: bundle{}.next(situation{now: now, desired: want.root})}
	if first.issuer, err = want.make(); err != nil {
		return err
	}
	switch err := k.secret.write(ctx, first, storedState{}, false); {
	case apierrors.IsAlreadyExists(err): // theirs counts
		return k.load(ctx)
	case err != nil:
		return k.unreadable(StateSecretName, err)
	}
	k.cfg.Logger.Info("made the first issuer", "origin", first.issuer.origin, "not_after", first.issuer.end())
	k.use(first)
	return nil
}

// use puts a state into force.
func (k *Keeper) use(s state) {
	k.mu.Lock()
	before := k.state
	k.state = s
	k.mu.Unlock()
	issuer := s.issuer
	if issuer.equal(before.issuer) {
		issuer = before.issuer
	}
	k.cfg.Authority.Use(issuer, Bundle{Roots: s.bundle.roots(), Retiring: s.bundle.retiringRoots()})
	k.metrics.state(s)
	if k.cfg.Published != nil {
		k.cfg.Published()
	}
}

// RunLeader keeps issuer and bundle as they are to be until ctx ends, once
// [Keeper.Open] returned. Only the leader runs it.
func (k *Keeper) RunLeader(ctx context.Context) error {
	// The leader before may have gone further than what was read at the start.
	for err := k.load(ctx); err != nil; err = k.load(ctx) {
		k.report(err)
		if isDamagedState(err) {
			break // what is in memory is put back
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(openRetry):
		}
	}
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		k.report(k.step(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-k.wake:
			// Many nodes answer together: one look for all of them.
			select {
			case <-time.After(keepPause):
			case <-ctx.Done():
			}
		}
	}
}

// step does what is due, as far as it can be done now.
func (k *Keeper) step(ctx context.Context) error {
	k.mu.Lock()
	before := k.state
	k.mu.Unlock()
	found, err := k.secret.read(ctx, k.cfg.Now())
	switch {
	case apierrors.IsNotFound(err):
		k.cfg.Logger.Warn("the issuer's Secret had vanished and is restored from memory", "secret", k.name(StateSecretName))
		found = storedState{}
	case isDamaged(err):
		k.cfg.Logger.Warn("the issuer's Secret was damaged and is restored from memory", "secret", k.name(StateSecretName), "error", err)
	case err != nil:
		return k.unreadable(StateSecretName, err)
	}
	next, note := k.follow(ctx, before, found.request)
	if changed(before, next) || found.request.any() || err != nil || changed(found.state, before) {
		if err := k.secret.write(ctx, next, found, true); err != nil {
			return k.unreadable(StateSecretName, err)
		}
		k.explain(before, next)
		k.use(next)
	}
	if err := k.promote(ctx, next); err != nil {
		return err
	}
	if err := k.publish(ctx, note); err != nil && ctx.Err() == nil {
		k.cfg.Logger.Error("publish roots", "config_map", k.name(ConfigMapName), "error", err)
	}
	return note
}

// follow returns the state that follows, and what stands in the way of what is
// wanted.
func (k *Keeper) follow(ctx context.Context, before state, request request) (state, error) {
	now, next := k.cfg.Now(), before
	want, problem := k.want(ctx, before, request)
	if problem != nil {
		// What is in use stays in use.
		want = wanted{root: before.bundle[before.bundle.index(before.bundle.signing())], make: func() (*Issuer, error) { return before.issuer, nil }}
	}
	next.next = want.next
	waiting, away := k.cfg.Nodes.Waiting(Bundle{Roots: before.bundle.roots(), Retiring: before.bundle.retiringRoots()})
	if k.unpublished(before) {
		waiting = append(waiting, "ConfigMap "+k.name(ConfigMapName))
	}
	next.bundle = before.bundle.next(situation{now: now, desired: want.root, waiting: waiting, away: away, used: k.cfg.Nodes.Used})
	k.mu.Lock()
	k.waiting = nil
	if len(next.bundle) > 1 {
		k.waiting = waiting
	}
	k.mu.Unlock()
	k.metrics.waiting.Set(float64(len(k.waiting)))
	if next.bundle.signing() == want.root.Fingerprint {
		issuer, err := want.make()
		if err != nil {
			k.cfg.Logger.Error("make issuer", "error", err)
			return before, err
		}
		next.issuer = issuer
	} else if request.intermediate && problem == nil {
		next.issuer = k.another(ctx, before)
	}
	return next, problem
}

// changed tells whether two states are to be told apart.
func changed(a, b state) bool {
	if a.issuer == nil || b.issuer == nil || !a.issuer.equal(b.issuer) || len(a.bundle) != len(b.bundle) || (a.next == nil) != (b.next == nil) {
		return true
	}
	for i := range a.bundle {
		if a.bundle[i].Fingerprint != b.bundle[i].Fingerprint || a.bundle[i].Phase != b.bundle[i].Phase {
			return true
		}
	}
	return a.next != nil && !a.next.cert.Equal(b.next.cert)
}

// explain logs what became of roots and issuer.
func (k *Keeper) explain(before, next state) {
	for _, t := range next.bundle {
		at := before.bundle.index(t.Fingerprint)
		if at < 0 || before.bundle[at].Phase != t.Phase {
			k.cfg.Logger.Info("root of the mesh", "fingerprint", t.Fingerprint, "phase", t.Phase)
		}
	}
	for _, t := range before.bundle {
		if next.bundle.index(t.Fingerprint) < 0 {
			k.cfg.Logger.Info("root is trusted no longer", "fingerprint", t.Fingerprint, "phase", t.Phase)
		}
	}
	if !next.issuer.equal(before.issuer) {
		k.cfg.Logger.Info("another issuer signs", "origin", next.issuer.origin, "subject", next.issuer.cert.Subject.String(), "not_after", next.issuer.end())
	}
}

// promote has the Secret ambit-ca hold the root that follows, once it signs; its
// predecessor's key is of no use to anybody from then on.
func (k *Keeper) promote(ctx context.Context, s state) error {
	if s.next == nil || s.bundle.signing() != Fingerprint(s.next.cert) {
		return nil
	}
	if err := k.cfg.Root.replace(ctx, s.next); err != nil {
		return k.unreadable(SecretName, err)
	}
	found, err := k.secret.read(ctx, k.cfg.Now())
	if err != nil {
		return k.unreadable(StateSecretName, err)
	}
	s.next = nil
	if err := k.secret.write(ctx, s, found, false); err != nil {
		return k.unreadable(StateSecretName, err)
	}
	k.mu.Lock()
	k.state.next = nil
	k.mu.Unlock()
	return nil
}

// report makes err the present problem; nil says all is well.
func (k *Keeper) report(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = err
	k.metrics.report(err)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == k.logged || errors.Is(err, context.Canceled) {
		return
	}
	k.logged = text
	if err != nil {
		k.cfg.Logger.Error("issuer needs attention", "error", err)
	} else {
		k.cfg.Logger.Info("issuer is well")
	}
}

func (k *Keeper) unreadable(secret string, err error) *Problem {
	return &Problem{
		Code: RootUnreadable, Object: "Secret " + k.name(secret), Detail: fmt.Sprintf("cannot read or write it: %v", err),
		Fix: "check the API server and the controller's permissions; it is tried again", cause: err,
	}
}

func (k *Keeper) stateProblem(err error) *Problem {
	return &Problem{
		Code: IssuerInvalid, Object: "Secret " + k.name(StateSecretName), Detail: err.Error(),
		Fix:   "restore the Secret from a backup, or delete it: then the root in " + SecretName + " or " + PluginSecretName + " signs anew, and a rotation under way ends",
		cause: err,
	}
}

func isDamagedState(err error) bool {
	p, ok := errors.AsType[*Problem](err)
	return ok && p.Code == IssuerInvalid
}

func (k *Keeper) name(object string) string { return k.cfg.Namespace + "/" + object }

// secretData returns the fields of a Secret, nil where there is none.
func (k *Keeper) secretData(ctx context.Context, name string) (map[string][]byte, error) {
	secret, err := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, k.unreadable(name, err)
	case secret.Data == nil:
		return map[string][]byte{}, nil
	}
	return secret.Data, nil
}
