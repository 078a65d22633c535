package report

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/internal/revocation"
)

const (
	// maxObservations of one node. The kubelet runs 110 pods by default, and
	// nobody gets it to run this many; more is a node that invents them.
	maxObservations = 4096
	// maxTextBytes of what a node says in words.
	maxTextBytes = 1024
	// maxNameBytes of a pod's namespace, name or UID: Kubernetes' own limit.
	maxNameBytes = 253
	// maxProblems of one node.
	maxProblems = 32
)

// Observation is what a node last said of one of its pods.
type Observation struct {
	Pod                types.NamespacedName
	UID                types.UID
	State              reportapi.CaptureState
	Reason             string
	Since              time.Time
	CertificateExpires time.Time // zero without a certificate
	CertificateSerial  string    // empty without one, and if it is no number
	ConfigVersion      string
	Older              int      // connections that are older than the capture
	FirstOlder         []string // of them, as LOCAL -> REMOTE
}

// Observed returns what a pod's node last said of it.
func (r *Registry) Observed(nodeName string, uid types.UID) (Observation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[nodeName]
	if !ok {
		return Observation{}, false
	}
	o, ok := n.observed[uid]
	return o, ok
}

// Reporting says whether a node has sent its whole state to this process: only
// then does it mean something that it did not mention a pod.
func (r *Registry) Reporting(nodeName string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[nodeName]
	return ok && n.complete
}

// observe takes one statement of a node about a pod. The error says why it was
// not taken.
func (r *Registry) observe(s *session, w *reportapi.WorkloadState) error {
	o := Observation{
		Pod:           types.NamespacedName{Namespace: w.GetNamespace(), Name: w.GetName()},
		UID:           types.UID(w.GetUid()),
		State:         w.GetState(),
		Reason:        cut(w.GetReason()),
		ConfigVersion: cut(w.GetConfigVersion()),
	}
	if o.UID == "" || o.Pod.Namespace == "" || o.Pod.Name == "" {
		return errors.New("it names no pod")
	}
	if max(len(o.UID), len(o.Pod.Namespace), len(o.Pod.Name)) > maxNameBytes {
		return fmt.Errorf("a name has more than %d bytes", maxNameBytes)
	}
	if w.GetSince() != nil {
		o.Since = w.GetSince().AsTime()
	}
	if w.GetCertificateExpires() != nil {
		o.CertificateExpires = w.GetCertificateExpires().AsTime()
	}
	if serial, err := revocation.Serial(w.GetCertificateSerial()); err == nil {
		o.CertificateSerial = serial
	}
	o.Older, o.FirstOlder = olderOf(w.GetOlder())
	if err := r.store(s, o, w.GetRemoved()); err != nil {
		return err
	}
	if r.onObserved != nil {
		r.onObserved(o.Pod)
	}
	return nil
}

// maxOlder is how many connections of a pod are named: as many as its Workload may.
const maxOlder = 16

// olderOf keeps what names connections, and a number that a pod can have.
func olderOf(said *reportapi.OlderConnections) (count int, first []string) {
	for _, text := range said.GetFirst() {
		local, remote, ok := strings.Cut(text, " -> ")
		from, err := netip.ParseAddrPort(local)
		to, other := netip.ParseAddrPort(remote)
		if ok && err == nil && other == nil && len(first) < maxOlder {
			first = append(first, from.String()+" -> "+to.String())
		}
	}
	return int(min(said.GetCount(), math.MaxInt32)), first
}

func (r *Registry) store(s *session, o Observation, removed bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodeLocked(s.node)
	if n.session != s {
		return errors.New("another stream speaks for the node")
	}
	if removed {
		delete(n.observed, o.UID)
		delete(n.withdrawals, o.UID)
		return nil
	}
	if _, known := n.observed[o.UID]; !known && len(n.observed) >= maxObservations {
		return fmt.Errorf("the node speaks of more than %d pods", maxObservations)
	}
	n.observed[o.UID] = o
	s.mentioned[o.UID] = struct{}{}
	if o.State != reportapi.CaptureState_WITHDRAWING {
		delete(n.withdrawals, o.UID)
		return nil
	}
	if before, known := n.withdrawals[o.UID]; known && before.asked.Equal(o.Since) {
		// It asks again: the release was lost on its way.
		before.released = false
	} else {
		n.withdrawals[o.UID] = &withdrawal{pod: o.Pod, since: r.cfg.Now(), asked: o.Since}
	}
	return nil
}

// snapshotSent drops what a node did not mention since its stream began. The
// pods stay as captured as they were.
func (r *Registry) snapshotSent(s *session) {
	r.mu.Lock()
	n := r.nodeLocked(s.node)
	if n.session != s {
		r.mu.Unlock()
		return
	}
	for uid := range n.observed {
		if _, ok := s.mentioned[uid]; !ok {
			delete(n.observed, uid)
			delete(n.withdrawals, uid)
		}
	}
	n.complete = true
	r.mu.Unlock()
	r.notifyNode(s.node)
}

func cut(text string) string {
	if len(text) > maxTextBytes {
		return text[:maxTextBytes]
	}
	return text
}

func cutAll(texts []string) []string {
	texts = slices.Clone(texts[:min(len(texts), maxProblems)])
	for i := range texts {
		texts[i] = cut(texts[i])
	}
	return texts
}
