package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Refusal is why somebody got no certificate: the same word in the log and in the
// metric. Words are stable.
type Refusal string

const (
	// NotAuthenticated: the token is missing, is none, or is bound to no pod.
	NotAuthenticated Refusal = "NotAuthenticated"
	// MalformedIdentity: what was asked for is no identity.
	MalformedIdentity Refusal = "MalformedIdentity"
	// ForeignTrustDomain: it is not of this mesh.
	ForeignTrustDomain Refusal = "ForeignTrustDomain"
	// NotZtunnel: others than ztunnel get their own identity alone.
	NotZtunnel Refusal = "NotZtunnel"
	// NotOnNode: the token is ztunnel's, and no pod of its node has the identity.
	NotOnNode Refusal = "NotOnNode"
	// CallerUnknown: the pod that the token is bound to is not there.
	CallerUnknown Refusal = "CallerUnknown"
	// CallerReplaced: another pod, or account, has the name of the token's pod.
	CallerReplaced Refusal = "CallerReplaced"
	// CallerElsewhere: the token's pod runs on another node than the token says.
	CallerElsewhere Refusal = "CallerElsewhere"
	// CallerEnded: the token's pod has ended.
	CallerEnded Refusal = "CallerEnded"
	// ForeignName: the signing request asks for more, or for another, than the
	// identity that the caller may have.
	ForeignName Refusal = "ForeignName"
	// LargeRequest: the signing request is larger than any honest one.
	LargeRequest Refusal = "LargeRequest"
	// UnfitKey: the signing request's key is too weak, or of an unknown kind.
	UnfitKey Refusal = "UnfitKey"
	// MalformedRequest: the signing request cannot be read, or is not signed by its key.
	MalformedRequest Refusal = "MalformedRequest"
)

// Refusals are all there are.
var Refusals = []Refusal{NotAuthenticated, MalformedIdentity, ForeignTrustDomain, NotZtunnel, NotOnNode, CallerUnknown,
	CallerReplaced, CallerElsewhere, CallerEnded, ForeignName, LargeRequest, UnfitKey, MalformedRequest}

// refusal is an error with its word.
type refusal struct {
	reason Refusal
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(reason Refusal, format string, args ...any) error {
	return &refusal{reason, fmt.Errorf(format, args...)}
}

// refusalOf returns the word for an error; false if it is none of the caller's.
func refusalOf(err error) (Refusal, bool) {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.reason, true
	}
	bad := (*requestError)(nil)
	switch {
	case !errors.As(err, &bad):
		return "", false
	case errors.Is(err, errForeignName):
		return ForeignName, true
	case errors.Is(err, errLargeRequest):
		return LargeRequest, true
	case errors.Is(err, errUnfitKey):
		return UnfitKey, true
	}
	return MalformedRequest, true
}

const (
	// auditBurst are the refusals of one pod that are all written down, one by one,
	// and auditPerSecond those that follow: who probes for what a stolen token is good
	// for is on record, and does not fill the disk.
	auditBurst     = 100
	auditPerSecond = 0.2
	// maxAudited bounds the pods that are remembered.
	maxAudited = 4096
	// maxAskedBytes of what was asked for are written down.
	maxAskedBytes = 512
)

// audit writes down who was refused what.
type audit struct {
	// Fixed after newAudit.
	logger   *slog.Logger
	refusals *prometheus.CounterVec

	mu      sync.Mutex
	callers map[string]*caller // guarded by mu; by the pod's UID
}

// caller is a pod that was refused.
type caller struct {
	lines *rate.Limiter
	left  int // refusals since the last line that have none
}

func newAudit(logger *slog.Logger, registerer prometheus.Registerer) *audit {
	a := &audit{logger: logger, callers: map[string]*caller{}, refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_ca_refusals_total", Help: "Certificates that were refused, by reason.",
	}, []string{"reason"})}
	for _, reason := range Refusals {
		a.refusals.WithLabelValues(string(reason)) // zero is an answer, too
	}
	if registerer != nil {
		registerer.MustRegister(a.refusals)
	}
	return a
}

func (a *audit) count(reason Refusal) { a.refusals.WithLabelValues(string(reason)).Inc() }

// refused counts and writes down one refusal. detail is for people.
func (a *audit) refused(ctx context.Context, peer Peer, asked string, reason Refusal, detail error) {
	a.count(reason)
	left, write := a.line(peer.PodUID)
	if !write {
		return
	}
	a.logger.Warn("certificate refused", "audit", true, "reason", string(reason), "identity", clip(asked), "peer", peer,
		"from", callerOf(ctx), "detail", detail, "not_logged_before", left)
}

// line tells whether a caller's refusal is to be written down, and how many were
// not since the last that was.
func (a *audit) line(uid string) (left int, write bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.callers[uid]
	if c == nil {
		for other := range a.callers {
			if len(a.callers) < maxAudited {
				break
			}
			delete(a.callers, other)
		}
		c = &caller{lines: rate.NewLimiter(auditPerSecond, auditBurst)}
		a.callers[uid] = c
	}
	if !c.lines.Allow() {
		c.left++
		return 0, false
	}
	left, c.left = c.left, 0
	return left, true
}

// clip keeps what was asked for from filling the log.
func clip(text string) string {
	if len(text) <= maxAskedBytes {
		return text
	}
	return text[:maxAskedBytes] + "..."
}
