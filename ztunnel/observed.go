package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// observedPods puts together what the parts of the node observe of its pods.
type observedPods struct {
	// Fixed.
	pods        *pods.Pods
	expires     func(spiffe.ID) (time.Time, bool)
	serial      func(spiffe.ID) string
	roots       func() []string // that certificates chain to
	snapshot    func() *workload.Snapshot
	trustDomain string
	clusterID   string
	sources     []func() []string                 // of problems
	older       func() map[string][]redirect.Flow // connections from before the capture, by the workload's uid

	// Guarded by mu.
	mu       sync.Mutex
	versions map[string]string                   // by the workload's uid, as of the last Refresh
	flows    map[string]*report.OlderConnections // likewise
}

func (o *observedPods) Whole() <-chan struct{}   { return o.pods.Synced() }
func (o *observedPods) Changed() <-chan struct{} { return o.pods.Changed() }

// Problems of the node, of all its parts.
func (o *observedPods) Problems() []string {
	var all []string
	for _, source := range o.sources {
		all = append(all, source()...)
	}
	return all
}

// Roots that the node's certificates chain to, by fingerprint.
func (o *observedPods) Roots() []string { return o.roots() }

// Refresh looks at the configuration of now. It is not done at every change:
// with the mesh at work, that would be a report per pod and change.
func (o *observedPods) Refresh() {
	snapshot := o.snapshot()
	versions := make(map[string]string)
	for _, status := range o.pods.Statuses() {
		uid := workload.PodUID(o.clusterID, status.Namespace, status.Name)
		versions[uid] = configVersion(snapshot, uid)
	}
	flows := make(map[string]*report.OlderConnections)
	for uid, all := range o.older() {
		if len(all) == 0 {
			continue
		}
		older := &report.OlderConnections{Count: uint32(len(all))}
		for _, f := range all[:min(len(all), shownOlder)] {
			older.First = append(older.First, f.Local.String()+" -> "+f.Remote.String())
		}
		flows[uid] = older
	}
	o.mu.Lock()
	o.versions, o.flows = versions, flows
	o.mu.Unlock()
}

// shownOlder connections are told of one by one: enough to see who they are with.
const shownOlder = 16

// States of all pods of the node.
func (o *observedPods) States() []*report.WorkloadState {
	o.mu.Lock()
	versions, flows := o.versions, o.flows
	o.mu.Unlock()
	var states []*report.WorkloadState
	for _, status := range o.pods.Statuses() {
		uid := workload.PodUID(o.clusterID, status.Namespace, status.Name)
		state := &report.WorkloadState{
			Namespace:     status.Namespace,
			Name:          status.Name,
			Uid:           status.UID,
			State:         captureState(status.State),
			Reason:        status.Reason,
			Since:         timestamppb.New(status.Since),
			ConfigVersion: versions[uid],
			Older:         flows[uid],
		}
		if id, err := spiffe.New(o.trustDomain, status.Namespace, status.ServiceAccount); err == nil {
			state.Identity = id.String()
			if expires, ok := o.expires(id); ok && status.NetNS != "" {
				state.CertificateExpires, state.CertificateSerial = timestamppb.New(expires), o.serial(id)
			}
		}
		states = append(states, state)
	}
	return states
}

func captureState(state pods.State) report.CaptureState {
	switch state {
	case pods.StatePending, pods.StateCapturing:
		return report.CaptureState_PENDING
	case pods.StateCaptured:
		return report.CaptureState_CAPTURED
	case pods.StateWithdrawing:
		return report.CaptureState_WITHDRAWING
	case pods.StateFailed:
		return report.CaptureState_FAILED
	case pods.StateNotEnrolled, pods.StateReleased:
		return report.CaptureState_NOT_ENROLLED
	}
	return report.CaptureState_UNKNOWN
}

// configVersion is a hash of what a snapshot says of one workload: itself, the
// policies that apply to it, and whom it trusts. Empty where it is not known.
func configVersion(snapshot *workload.Snapshot, uid string) string {
	published, ok := snapshot.WorkloadByUID(uid)
	if !ok {
		return ""
	}
	hash := sha256.New()
	text, err := json.Marshal(published)
	if err != nil {
		return ""
	}
	hash.Write(text)
	hash.Write(snapshot.AuthorizationsDigest(published))
	egress, missing := snapshot.EgressPolicies(published)
	if text, err = json.Marshal([]any{egress, missing}); err != nil {
		return ""
	}
	hash.Write(text)
	for _, root := range snapshot.TrustBundle() {
		hash.Write(root.Raw)
	}
	return hex.EncodeToString(hash.Sum(nil)[:6])
}
