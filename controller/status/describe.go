package status

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// known is everything that the status of one pod rests on.
type known struct {
	pod       *corev1.Pod
	enrolment enrolment
	// observation of the pod's node, nil if it made none.
	observation *report.Observation
	// reporting: the node has sent its whole state.
	reporting bool
	// silent: the node's heartbeat stopped, at heartbeat, which is zero if there never was one.
	silent    bool
	heartbeat time.Time
	// previous is the status that the pod has, nil if none.
	previous *v1alpha1.WorkloadStatus
	// remembered is what the pod's Workload says, to the best of this process's knowledge.
	remembered report.Remembered
	// mayTurn: its node asks to let it go, and it need be reached by tunnels no longer.
	mayTurn bool
	// waypoint is what is known of the way to the pod.
	waypoint Waypoint
	now      time.Time
}

func (k known) observed() reportapi.CaptureState {
	if k.observation == nil {
		return reportapi.CaptureState_UNKNOWN
	}
	return k.observation.State
}

// exists says whether the pod has a Workload object. One that is remembered as
// captured keeps it until its node let it go.
func (k known) exists() bool {
	if k.enrolment.mode != modeNone {
		return true
	}
	switch k.observed() {
	case reportapi.CaptureState_CAPTURED, reportapi.CaptureState_WITHDRAWING:
		return true
	}
	return k.protocol() == v1alpha1.ProtocolHBONE
}

// protocol is HBONE from when the node captured the pod until the node asks to
// let it go and all nodes know that it takes plaintext. A node that says it has not captured a pod is believed if the
// labels agree; no other statement, and no silence, ends HBONE.
func (k known) protocol() v1alpha1.Protocol {
	switch k.observed() {
	case reportapi.CaptureState_CAPTURED:
		return v1alpha1.ProtocolHBONE
	case reportapi.CaptureState_WITHDRAWING:
		if k.mayTurn {
			return v1alpha1.ProtocolTCP
		}
	case reportapi.CaptureState_NOT_ENROLLED:
		if k.enrolment.mode != modeAmbient {
			return v1alpha1.ProtocolTCP
		}
	}
	if k.remembered.HBONE {
		return v1alpha1.ProtocolHBONE
	}
	return v1alpha1.ProtocolTCP
}

// leaving says whether the pod's node asks to let it go: until it has sent its state
// to this process, what is remembered of that.
func (k known) leaving() bool {
	if k.observation == nil && !k.reporting {
		return k.remembered.Leaving
	}
	return k.observed() == reportapi.CaptureState_WITHDRAWING
}

// state is a state with its reason; since is zero when nobody said it.
type state struct {
	state  v1alpha1.State
	reason string
	since  time.Time
}

// status returns the status that the pod shall have.
func (k known) status() v1alpha1.WorkloadStatus {
	s := k.state()
	status := v1alpha1.WorkloadStatus{
		State:    s.state,
		Reason:   s.reason,
		Protocol: k.protocol(),
		Since:    k.since(s),
		Binding:  k.waypoint.Binding,

		WaypointReady: k.waypoint.Ready,
	}
	switch {
	case s.state == v1alpha1.StateNotEnrolled:
	case k.observation != nil:
		status.ConfigVersion = k.observation.ConfigVersion
		if !k.observation.CertificateExpires.IsZero() {
			status.CertificateExpires, status.CertificateSerial = seconds(k.observation.CertificateExpires), k.observation.CertificateSerial
		}
		status.OlderConnections, status.FirstOlderConnections = int32(k.observation.Older), k.observation.FirstOlder
	case k.previous != nil:
		status.ConfigVersion, status.CertificateExpires = k.previous.ConfigVersion, k.previous.CertificateExpires
		status.CertificateSerial = k.previous.CertificateSerial
		status.OlderConnections, status.FirstOlderConnections = k.previous.OlderConnections, k.previous.FirstOlderConnections
	}
	status.Summary = summary(status)
	return status
}

// state decides in order of who has the last word: Kubernetes on what cannot be
// captured, the labels, the node's silence, the node.
func (k known) state() state {
	switch {
	case k.pod.Spec.HostNetwork:
		return state{state: v1alpha1.StateNotEnrolled, reason: "HostNetwork: the pod uses its node's network, which is never captured"}
	case terminal(k.pod):
		return state{state: v1alpha1.StateNotEnrolled, reason: "Completed: the pod's containers have ended"}
	case k.enrolment.mode == modeUnknown:
		return state{state: v1alpha1.StateFailed, reason: fmt.Sprintf(
			"UnknownDataplaneMode: label %s=%q of the %s is neither ambient nor none", Label, k.enrolment.value, k.enrolment.kind)}
	case k.enrolment.mode == modeOptedOut && k.protocol() == v1alpha1.ProtocolTCP && k.untouched():
		return state{state: v1alpha1.StateNotEnrolled, reason: fmt.Sprintf("OptedOut: the pod has label %s=none", Label)}
	case k.pod.Spec.NodeName == "":
		return state{state: v1alpha1.StatePending, reason: "Unscheduled: the pod has no node yet"}
	case k.silent:
		return state{
			state:  v1alpha1.StateStale,
			reason: fmt.Sprintf("NodeSilent: ztunnel on node %s does not report", k.pod.Spec.NodeName),
			since:  k.heartbeat,
		}
	case k.observation != nil:
		return k.stateObserved()
	case k.alone() && k.alonenessLeft() <= 0:
		return state{state: v1alpha1.StateFailed, reason: fmt.Sprintf(
			"NoZtunnel: no ztunnel was ever heard of on node %s, and the pod runs there outside of the mesh; ambit check (AMB023) says why", k.pod.Spec.NodeName)}
	case !k.reporting && k.lasts():
		return state{state: k.previous.State, reason: k.previous.Reason}
	default:
		return state{state: v1alpha1.StatePending, reason: fmt.Sprintf(
			"NotReported: ztunnel on node %s has not reported this pod", k.pod.Spec.NodeName)}
	}
}

// aloneAfter is what a ztunnel has to start on a node that is new, whose pods start with it.
const aloneAfter = time.Minute

// alone says whether the pod runs, and was never captured, on a node of which no ztunnel was ever heard.
func (k known) alone() bool {
	return k.enrolment.mode == modeAmbient && k.pod.Status.Phase == corev1.PodRunning &&
		k.heartbeat.IsZero() && k.observation == nil && !k.reporting && !k.remembered.HBONE
}

// alonenessLeft is how much longer a pod that is alone is merely one of a new node.
func (k known) alonenessLeft() time.Duration {
	started := k.pod.CreationTimestamp.Time
	if k.pod.Status.StartTime != nil {
		started = k.pod.Status.StartTime.Time
	}
	if started.IsZero() {
		return aloneAfter // nobody says since when
	}
	return started.Add(aloneAfter).Sub(k.now)
}

// untouched says whether the node does nothing with the pod, as far as it said.
func (k known) untouched() bool {
	return k.observation == nil || k.observed() == reportapi.CaptureState_NOT_ENROLLED
}

// lasts says whether the state that the pod had still stands while its node has
// not sent its state to a new leader: if the node is where it came from.
func (k known) lasts() bool {
	if k.previous == nil {
		return false
	}
	switch k.previous.State {
	case v1alpha1.StateCaptured, v1alpha1.StatePending, v1alpha1.StateStale:
		return true
	case v1alpha1.StateFailed:
		return word(k.previous.Reason) != "UnknownDataplaneMode" && word(k.previous.Reason) != "NoZtunnel"
	default:
		return false
	}
}

func (k known) stateObserved() state {
	o := k.observation
	s := state{reason: o.Reason, since: o.Since}
	switch o.State {
	case reportapi.CaptureState_CAPTURED:
		s.state, s.reason = v1alpha1.StateCaptured, ""
	case reportapi.CaptureState_FAILED:
		s.state = v1alpha1.StateFailed
		if s.reason == "" {
			s.reason = "Unexplained: the node gives no reason"
		}
	case reportapi.CaptureState_NOT_ENROLLED:
		s.state = v1alpha1.StateNotEnrolled
	case reportapi.CaptureState_WITHDRAWING:
		s.state, s.reason = v1alpha1.StatePending, withdrawing+": captured until no node tunnels to it any more"
	default:
		s.state = v1alpha1.StatePending
	}
	return s
}

// withdrawing is the reason of what its node asks to let go.
const withdrawing = "Withdrawing"

// since is when the state began: as who stated it says, else as remembered,
// else now.
func (k known) since(s state) *metav1.Time {
	if !s.since.IsZero() {
		return seconds(s.since)
	}
	if p := k.previous; p != nil && p.Since != nil && p.State == s.state && word(p.Reason) == word(s.reason) {
		return p.Since
	}
	return seconds(k.now)
}

// seconds returns a time as it comes back from the API server.
func seconds(t time.Time) *metav1.Time {
	stored := metav1.NewTime(t.UTC().Truncate(time.Second))
	return &stored
}

// summary is what the STATE column shows.
func summary(status v1alpha1.WorkloadStatus) string {
	switch {
	case status.State == v1alpha1.StateStale && status.Since != nil:
		return "Stale since " + status.Since.UTC().Format("15:04:05Z")
	case (status.State == v1alpha1.StateFailed || status.State == v1alpha1.StatePending) && status.Reason != "":
		return string(status.State) + ": " + word(status.Reason)
	default:
		return string(status.State)
	}
}

// word returns what a reason begins with, before the colon.
func word(reason string) string {
	first, _, _ := strings.Cut(reason, ":")
	return first
}

// spec returns what Kubernetes says of a pod.
func spec(pod *corev1.Pod, trustDomain string) v1alpha1.WorkloadSpec {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	s := v1alpha1.WorkloadSpec{
		Node:     pod.Spec.NodeName,
		Identity: spiffe.ID{TrustDomain: trustDomain, Namespace: pod.Namespace, ServiceAccount: account}.String(),
	}
	// The addresses of a pod that ended may be another's by now.
	if !terminal(pod) {
		for _, ip := range pod.Status.PodIPs {
			s.Addresses = append(s.Addresses, ip.IP)
		}
	}
	return s
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
