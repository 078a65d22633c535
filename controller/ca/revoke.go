package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
)

const (
	// RevokedConfigMapName is the ConfigMap with what is revoked, and with requests
	// to revoke more. It holds nothing secret.
	RevokedConfigMapName = "ambit-ca-revoked"
	// RevokedKey is its field with a [Revoked].
	RevokedKey = "list.json"
	// RevokedStatusKey is its field with a [RevokedStatus].
	RevokedStatusKey = "status.json"
	// RequestPrefix begins the names of fields with a [RevokeRequest] each; the
	// rest of the name is the request's, which its outcome is found by.
	RequestPrefix = "request."
	// RevokedAnnotation on the ConfigMap [ConfigMapName] is the version of the list:
	// where it is, a list that is not there was lost.
	RevokedAnnotation = "ambit.mesh/revoked"
)

const (
	// revokeInterval is how soon a changed CRL is seen, and the end of an entry.
	revokeInterval = 2 * time.Second
	// revokePause is how long requests and answers of nodes are gathered.
	revokePause = 50 * time.Millisecond
	// rewatchPause is how soon the ConfigMap is watched again after that ended.
	rewatchPause = time.Second
	// maxRequests are taken at a time.
	maxRequests = 64
)

// What may be wrong with revocations.
const (
	// RevokedUnreadable: the list cannot be read, or be written.
	RevokedUnreadable Code = "RevokedUnreadable"
	// RevokedLost: the list is gone, while something was revoked.
	RevokedLost Code = "RevokedLost"
	// CRLInvalid: the plug-in's revocation list cannot be used; the last good one is in force.
	CRLInvalid Code = "CRLInvalid"
	// CRLStale: the plug-in's revocation list in force should have been succeeded by another one.
	CRLStale Code = "CRLStale"
	// CRLMissing: it is gone from the Secret, and stays in force.
	CRLMissing Code = "CRLMissing"
)

var revokeCodes = []Code{RevokedUnreadable, RevokedLost, CRLInvalid, CRLStale, CRLMissing}

// RevokedStatus is what people see besides the list.
type RevokedStatus struct {
	Version int `json:"version"`
	// Waiting are the nodes that are not known to work with this version.
	Waiting []string       `json:"waiting,omitempty"`
	Problem *ProblemStatus `json:"problem,omitempty"`
}

// RevokerConfig is what a [Revoker] needs.
type RevokerConfig struct {
	Client    kubernetes.Interface
	Namespace string
	// TrustDomain of the mesh.
	TrustDomain string
	Authority   *Authority
	// Behind returns the nodes that are not known to work with exactly this list.
	Behind func(*meshapi.RevocationList) []string
	// Published is called when the list is another one.
	Published func()
	// Now is the clock, time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Revoker keeps what is revoked: it takes requests and the plug-in's lists in,
// drops what has ended, and puts back what somebody else has changed.
//
// While it runs, what it has in memory counts. When it starts, nothing is served
// before the list is read: an authority that has forgotten what was revoked would
// have everybody forget it.
type Revoker struct {
	cfg     RevokerConfig
	metrics revokerMetrics
	ready   chan struct{} // closed once the list is known
	wake    chan struct{}

	mu       sync.Mutex // guards the rest
	known    bool
	revoked  Revoked
	problem  error
	logged   string // its text, so that each trouble is logged once
	annotate bool   // the annotation may be of another version
	waiting  bool   // for nodes
}

// NewRevoker returns one that has read nothing yet.
func NewRevoker(cfg RevokerConfig) *Revoker {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Revoker{
		cfg: cfg, metrics: newRevokerMetrics(cfg.Registerer), ready: make(chan struct{}), wake: make(chan struct{}, 1), annotate: true,
	}
}

// Message is what data planes are to be sent; nil before the list is known.
func (r *Revoker) Message() *meshapi.RevocationList {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		return nil
	}
	return r.revoked.message(r.cfg.TrustDomain)
}

// Changed has the leader look again: nodes answered, perhaps.
func (r *Revoker) Changed() {
	r.mu.Lock()
	waiting := r.waiting
	r.mu.Unlock()
	if waiting {
		r.hurry()
	}
}

func (r *Revoker) hurry() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Ready is closed once the list is known. Before that nobody is to be served.
func (r *Revoker) Ready() <-chan struct{} { return r.ready }

// Problem returns what is wrong now, nil when all is well.
func (r *Revoker) Problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

// RunLeader keeps the list until ctx ends, once the authority has an issuer. Only
// the leader runs it.
func (r *Revoker) RunLeader(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { r.watch(ctx) })
	ticker := time.NewTicker(revokeInterval)
	defer ticker.Stop()
	for {
		r.report(r.step(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-r.wake:
			// Requests come together, and so do nodes' answers: one look for all of them.
			select {
			case <-time.After(revokePause):
			case <-ctx.Done():
			}
		}
	}
}

// watch has requests seen at once.
func (r *Revoker) watch(ctx context.Context) {
	named := metav1.ListOptions{FieldSelector: "metadata.name=" + RevokedConfigMapName}
	for ctx.Err() == nil {
		if watching, err := r.configMaps().Watch(ctx, named); err == nil {
			r.wakeUp(ctx, watching)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rewatchPause): // meanwhile it is looked at now and then
		}
	}
}

// wakeUp has the leader look at each change, until there are no more to hear of.
func (r *Revoker) wakeUp(ctx context.Context, watching watch.Interface) {
	defer watching.Stop()
	for {
		select {
		case _, more := <-watching.ResultChan():
			if !more {
				return
			}
			r.hurry()
		case <-ctx.Done():
			return
		}
	}
}

// step does what is due.
func (r *Revoker) step(ctx context.Context) error {
	signing, _, err := r.cfg.Authority.current()
	if err != nil {
		return err
	}
	found, err := r.read(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	before, known := r.revoked, r.known
	r.mu.Unlock()
	if !known {
		before = found.revoked
	} else if found.damaged != nil || found.revoked.Version != before.Version {
		r.cfg.Logger.Warn("what is revoked was changed by somebody else, and is restored from memory", "config_map", r.name(), "found", found.revoked.Version, "error", found.damaged)
	}
	now := r.cfg.Now()
	next := before.expire(now).know(signing)
	next = r.answerAll(next, found.requests, signing, now)
	next, problem := r.followCRLs(ctx, next, signing, now)
	if changedRevoked(before, next) {
		next.Version = before.Version + 1
	}
	if err := r.write(ctx, found, next, problem); err != nil {
		return err
	}
	if err := r.use(next, !known || changedRevoked(before, next)); err != nil {
		return err
	}
	if err := r.mark(ctx, next); err != nil && ctx.Err() == nil {
		r.cfg.Logger.Error("note the version of what is revoked", "config_map", ConfigMapName, "error", err)
	}
	return problem
}

// changedRevoked tells whether two lists are to be told apart.
func changedRevoked(a, b Revoked) bool {
	a.Version, b.Version = 0, 0
	one, err1 := json.Marshal(a)
	other, err2 := json.Marshal(b)
	return err1 != nil || err2 != nil || string(one) != string(other)
}

// answerAll does what is asked for, request by request.
func (r *Revoker) answerAll(next Revoked, requests map[string]string, signing *Issuer, now time.Time) Revoked {
	for i, name := range sortedKeys(requests) {
		if i == maxRequests {
			break // the others are next
		}
		var ask RevokeRequest
		err := json.Unmarshal([]byte(requests[name]), &ask)
		if err != nil {
			err = fmt.Errorf("the request is not understood: %w", err)
		} else {
			next, err = next.revoke(ask, r.cfg.TrustDomain, signing, now)
		}
		next = next.answer(name, err, now)
		log := r.cfg.Logger.With("request", name, "serial", ask.Serial, "issuer", ask.Issuer, "identity", ask.Identity, "note", ask.Note)
		if err != nil {
			log.Warn("not revoked", "reason", err)
		} else {
			log.Warn("revoked")
		}
	}
	return next
}

// followCRLs takes the plug-in's lists in; without a good one the last one stays.
func (r *Revoker) followCRLs(ctx context.Context, next Revoked, signing *Issuer, now time.Time) (Revoked, error) {
	problem := func(code Code, format string, args ...any) *Problem {
		return &Problem{
			Code: code, Object: "Secret " + r.cfg.Namespace + "/" + PluginSecretName, Field: PluginCRLKey, Detail: fmt.Sprintf(format, args...),
			Fix: "correct that field; until then the lists of before, if there are any, stay in force",
		}
	}
	secret, err := r.cfg.Client.CoreV1().Secrets(r.cfg.Namespace).Get(ctx, PluginSecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return next, nil
	case err != nil:
		p := problem(RevokedUnreadable, "cannot read it: %v", err)
		p.Fix, p.cause = "check the API server and the controller's permissions; it is tried again", err
		return next, p
	}
	text, there := secret.Data[PluginCRLKey]
	if !there {
		if len(next.CRLs) > 0 {
			return next, problem(CRLMissing, "it is gone, and what it revoked stays so: put it back, or a newer list without entries")
		}
		return next, nil
	}
	authorities := signing.way()
	if plugged, p := parsePlugin(secret.Data, r.cfg.TrustDomain, now); p == nil { // perhaps not in use yet
		authorities = append(authorities, plugged.way()...)
	}
	lists, err := parseCRLs(text, authorities, now)
	if err == nil {
		next, err = next.takeCRLs(lists, signing)
	}
	if err == nil {
		return next, nil
	}
	for _, crl := range next.CRLs {
		if now.After(crl.NextUpdate) {
			return next, problem(CRLStale, "the list of %q was good until %s, and stays in force: put a newer one (%v)", crl.Subject, crl.NextUpdate.Format(time.RFC3339), err)
		}
	}
	return next, problem(CRLInvalid, "%v", err)
}

// use puts a list into force.
func (r *Revoker) use(next Revoked, changed bool) error {
	list, err := next.list()
	if err != nil {
		return fmt.Errorf("make list of what is revoked: %w", err)
	}
	r.mu.Lock()
	first := !r.known
	r.revoked, r.known = next, true
	if changed {
		r.annotate = true
	}
	r.mu.Unlock()
	r.cfg.Authority.revoke(list)
	r.metrics.list(next)
	if first {
		close(r.ready)
	}
	if changed && r.cfg.Published != nil {
		r.cfg.Published()
	}
	return nil
}

// foundRevoked is the ConfigMap as it was read.
type foundRevoked struct {
	object   *corev1.ConfigMap // nil if there is none
	revoked  Revoked
	damaged  error
	requests map[string]string
}

// read returns what is kept. Before the list is known, one that is damaged or lost
// is a *Problem; after that it is not.
func (r *Revoker) read(ctx context.Context) (foundRevoked, error) {
	r.mu.Lock()
	known := r.known
	r.mu.Unlock()
	object, err := r.configMaps().Get(ctx, RevokedConfigMapName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && known:
		return foundRevoked{damaged: err}, nil
	case apierrors.IsNotFound(err):
		return foundRevoked{}, r.lost(ctx)
	case err != nil:
		return foundRevoked{}, r.unreadable(err)
	}
	found := foundRevoked{object: object, requests: map[string]string{}}
	for field, text := range object.Data {
		if name, is := strings.CutPrefix(field, RequestPrefix); is {
			found.requests[name] = text
		}
	}
	text, there := object.Data[RevokedKey]
	switch {
	case !there && !known: // only requests have been written so far, or it was taken away
		return found, r.lost(ctx)
	case !there:
		found.damaged = errors.New("the field is gone")
		return found, nil
	}
	if found.revoked, err = decodeRevoked(text); err == nil {
		return found, nil
	}
	if known {
		found.damaged = err
		return found, nil
	}
	return found, &Problem{
		Code: RevokedUnreadable, Object: "ConfigMap " + r.name(), Field: RevokedKey, Detail: err.Error(), cause: err,
		Fix: "restore it from a backup; or, to revoke nothing from here on, delete the ConfigMap and the annotation " + RevokedAnnotation +
			" of ConfigMap " + r.cfg.Namespace + "/" + ConfigMapName + "; until then no certificate is issued, and data planes keep the list that they have",
	}
}

// lost returns a *Problem if there was a list.
func (r *Revoker) lost(ctx context.Context) error {
	published, err := r.configMaps().Get(ctx, ConfigMapName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return r.unreadable(err)
	}
	version := published.Annotations[RevokedAnnotation]
	if version == "" {
		return nil
	}
	return &Problem{
		Code: RevokedLost, Object: "ConfigMap " + r.name(), Field: RevokedKey,
		Detail: "it is gone, and something was revoked: there was a version " + version,
		Fix: "restore it from a backup; or, to revoke nothing from here on, delete the annotation " + RevokedAnnotation +
			" of ConfigMap " + r.cfg.Namespace + "/" + ConfigMapName + "; until then no certificate is issued, and data planes keep the list that they have",
	}
}

func (r *Revoker) unreadable(err error) *Problem {
	return &Problem{
		Code: RevokedUnreadable, Object: "ConfigMap " + r.name(), Detail: fmt.Sprintf("cannot read or write it: %v", err),
		Fix: "check the API server and the controller's permissions; it is tried again", cause: err,
	}
}

// write has the ConfigMap hold the list and what people see of it, and the
// requests no more that were answered.
func (r *Revoker) write(ctx context.Context, found foundRevoked, next Revoked, problem error) error {
	list, err := next.encode()
	if err != nil {
		return err
	}
	status, err := json.MarshalIndent(r.status(next, problem), "", "  ")
	if err != nil {
		return err
	}
	data := map[string]string{RevokedKey: list, RevokedStatusKey: string(status)}
	if found.object == nil {
		_, err = r.configMaps().Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: RevokedConfigMapName, Namespace: r.cfg.Namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}},
			Data:       data,
		}, metav1.CreateOptions{})
	} else {
		object := found.object.DeepCopy()
		if object.Data == nil {
			object.Data = map[string]string{}
		}
		maps.Copy(object.Data, data)
		for name := range found.requests {
			if slices.ContainsFunc(next.Outcomes, func(o RevokeOutcome) bool { return o.Request == name }) {
				delete(object.Data, RequestPrefix+name)
			}
		}
		if maps.Equal(object.Data, found.object.Data) {
			return nil
		}
		_, err = r.configMaps().Update(ctx, object, metav1.UpdateOptions{}) // a conflict is tried again
	}
	if err != nil {
		return r.unreadable(err)
	}
	return nil
}

func (r *Revoker) status(next Revoked, problem error) RevokedStatus {
	s := RevokedStatus{Version: next.Version}
	if r.cfg.Behind != nil {
		s.Waiting = r.cfg.Behind(next.message(r.cfg.TrustDomain))
	}
	r.metrics.waiting.Set(float64(len(s.Waiting)))
	r.mu.Lock()
	r.waiting = len(s.Waiting) > 0
	r.mu.Unlock()
	if p, ok := errors.AsType[*Problem](problem); ok {
		s.Problem = &ProblemStatus{Code: string(p.Code), Object: p.Object, Field: p.Field, Detail: p.Detail, Fix: p.Fix}
	}
	return s
}

// mark notes the version of a list with something in it where its loss is seen.
func (r *Revoker) mark(ctx context.Context, next Revoked) error {
	r.mu.Lock()
	due := r.annotate
	r.mu.Unlock()
	if !due {
		return nil
	}
	version := "null"
	if next.count() > 0 {
		version = fmt.Sprintf("%q", fmt.Sprint(next.Version))
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, RevokedAnnotation, version)
	_, err := r.configMaps().Patch(ctx, ConfigMapName, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil // it is about to be made, and is marked then
	}
	if err == nil {
		r.mu.Lock()
		r.annotate = false
		r.mu.Unlock()
	}
	return err
}

// report makes err the present problem; nil says all is well.
func (r *Revoker) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err
	r.metrics.report(err)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == r.logged || errors.Is(err, context.Canceled) {
		return
	}
	r.logged = text
	if err != nil {
		r.cfg.Logger.Error("revocation needs attention", "error", err)
	} else {
		r.cfg.Logger.Info("revocation is well")
	}
}

func (r *Revoker) configMaps() corev1client.ConfigMapInterface {
	return r.cfg.Client.CoreV1().ConfigMaps(r.cfg.Namespace)
}

func (r *Revoker) name() string { return r.cfg.Namespace + "/" + RevokedConfigMapName }

// revokerMetrics are ambit_ca_* about what is revoked.
type revokerMetrics struct {
	problem *prometheus.GaugeVec
	revoked *prometheus.GaugeVec
	waiting prometheus.Gauge
}

func newRevokerMetrics(registerer prometheus.Registerer) revokerMetrics {
	m := revokerMetrics{
		problem: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_revocation_problem", Help: "1 for what is wrong with what is revoked now, by code.",
		}, []string{"code"}),
		revoked: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_revoked", Help: "What is revoked now: certificates and identities that were asked for, certificates in the plug-in's lists.",
		}, []string{"kind"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_ca_revocation_waiting", Help: "Nodes that are not known to work with what is revoked now.",
		}),
	}
	m.report(nil)
	if registerer != nil {
		registerer.MustRegister(m.problem, m.revoked, m.waiting)
	}
	return m
}

func (m revokerMetrics) report(err error) {
	for _, code := range revokeCodes {
		m.problem.WithLabelValues(string(code)).Set(0)
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		m.problem.WithLabelValues(string(p.Code)).Set(1)
	}
}

func (m revokerMetrics) list(r Revoked) {
	counts := map[string]int{"certificate": 0, "identity": 0, "crl": r.count() - len(r.Entries)}
	for _, e := range r.Entries {
		if e.Identity == "" {
			counts["certificate"]++
		} else {
			counts["identity"]++
		}
	}
	for kind, n := range counts {
		m.revoked.WithLabelValues(kind).Set(float64(n))
	}
}
