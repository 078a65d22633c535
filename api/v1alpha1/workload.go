package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// State is what a node observed of a pod's capture.
//
// +kubebuilder:validation:Enum=Captured;Pending;Failed;NotEnrolled;Stale
type State string

const (
	// StateCaptured: redirection is attached in both directions.
	StateCaptured State = "Captured"
	// StatePending: enrolled, and not captured yet.
	StatePending State = "Pending"
	// StateFailed: enrolled, and its node cannot capture it; the reason says why.
	StateFailed State = "Failed"
	// StateNotEnrolled: in an enrolled namespace, but opted out or not eligible.
	StateNotEnrolled State = "NotEnrolled"
	// StateStale: the node's heartbeat stopped; the last observation may be wrong.
	StateStale State = "Stale"
)

// Protocol is how other pods of the mesh reach a workload.
//
// +kubebuilder:validation:Enum=HBONE;TCP
type Protocol string

const (
	// ProtocolHBONE: over mutual TLS tunnels.
	ProtocolHBONE Protocol = "HBONE"
	// ProtocolTCP: directly, without encryption.
	ProtocolTCP Protocol = "TCP"
)

// Workload is one pod as the mesh sees it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=workloads,scope=Namespaced,categories=ambit
// +kubebuilder:printcolumn:name="ADDRESS",type=string,JSONPath=`.spec.addresses[0]`
// +kubebuilder:printcolumn:name="NODE",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="WAYPOINT",type=string,JSONPath=`.spec.waypoint`
// +kubebuilder:printcolumn:name="PROTOCOL",type=string,JSONPath=`.status.protocol`
// +kubebuilder:printcolumn:name="STATE",type=string,JSONPath=`.status.summary`
// +kubebuilder:printcolumn:name="OLDER",type=integer,JSONPath=`.status.olderConnections`,priority=1
// +kubebuilder:printcolumn:name="IDENTITY",type=string,JSONPath=`.spec.identity`,priority=1
// +kubebuilder:printcolumn:name="CERT-EXPIRES",type=string,JSONPath=`.status.certificateExpires`,priority=1
// +kubebuilder:printcolumn:name="CERT-SERIAL",type=string,JSONPath=`.status.certificateSerial`,priority=1
// +kubebuilder:printcolumn:name="CONFIG",type=string,JSONPath=`.status.configVersion`,priority=1
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type Workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what Kubernetes says of the pod.
	Spec WorkloadSpec `json:"spec,omitempty"`
	// Status is what the pod's node observed.
	Status WorkloadStatus `json:"status,omitempty"`
}

// WorkloadSpec is derived from the pod by the controller; changes to it are
// overwritten.
type WorkloadSpec struct {
	// Addresses are the pod's IP addresses.
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// Node that the pod runs on.
	// +optional
	Node string `json:"node,omitempty"`
	// Identity is the SPIFFE ID that the pod has in the mesh.
	// +optional
	Identity string `json:"identity,omitempty"`
	// Waypoint that connections to the pod pass, as namespace/name: its own, or that
	// of the Services that it serves; all of them, separated by commas, if these differ.
	// +optional
	Waypoint string `json:"waypoint,omitempty"`
}

// WorkloadStatus is what the pod's node observed.
type WorkloadStatus struct {
	// State of the capture.
	// +optional
	State State `json:"state,omitempty"`
	// Summary is the state with its reason or time, as the STATE column shows it.
	// +optional
	Summary string `json:"summary,omitempty"`
	// Reason of a state other than Captured: a CamelCase word, a colon, and a sentence.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Since when the state is as it is.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Protocol over which other pods of the mesh reach the workload.
	// +optional
	Protocol Protocol `json:"protocol,omitempty"`
	// Binding is how far it is that the pod is reached through its own waypoint:
	// InForce, Pending, Direct, NotCaptured, WaypointNotFound, NotAllowed or Leaving, as the
	// reasons of the condition ambit.mesh/Bound of Services. Empty if it has none.
	// +optional
	Binding string `json:"binding,omitempty"`
	// WaypointReady tells whether that waypoint can do its part: WaypointReady,
	// WaypointNotReady, NotAcknowledged, WaypointNotFound or NotAllowed, as the reasons of
	// the condition ambit.mesh/Ready of Services.
	// +optional
	WaypointReady string `json:"waypointReady,omitempty"`
	// CertificateExpires is the end of validity of the certificate in use.
	// +optional
	CertificateExpires *metav1.Time `json:"certificateExpires,omitempty"`
	// CertificateSerial is the serial number of that certificate, in hex, as
	// `ambit ca revoke` takes it.
	// +optional
	CertificateSerial string `json:"certificateSerial,omitempty"`
	// OlderConnections is the number of the pod's connections that are older than its
	// capture. They are around the mesh, in plaintext, and end when the pod turns
	// STRICT and its grace is over.
	// +optional
	OlderConnections int32 `json:"olderConnections,omitempty"`
	// FirstOlderConnections are the first of them, 16 at most, as LOCAL -> REMOTE.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	FirstOlderConnections []string `json:"firstOlderConnections,omitempty"`
	// ConfigVersion is the version of the configuration that the node works with.
	// +optional
	ConfigVersion string `json:"configVersion,omitempty"`
}

// WorkloadList is a list of workloads.
//
// +kubebuilder:object:root=true
type WorkloadList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Workload `json:"items"`
}
