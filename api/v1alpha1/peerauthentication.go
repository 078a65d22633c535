package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MutualTLSMode is whether connections must be mutual TLS.
//
// +kubebuilder:validation:Enum=UNSET;STRICT;PERMISSIVE;DISABLE
type MutualTLSMode string

const (
	// MutualTLSUnset: as the less specific policy says.
	MutualTLSUnset MutualTLSMode = "UNSET"
	// MutualTLSStrict: plaintext is refused.
	MutualTLSStrict MutualTLSMode = "STRICT"
	// MutualTLSPermissive: plaintext is accepted beside mutual TLS.
	MutualTLSPermissive MutualTLSMode = "PERMISSIVE"
	// MutualTLSDisable: plaintext is accepted. Pods of the mesh use tunnels all
	// the same.
	MutualTLSDisable MutualTLSMode = "DISABLE"
)

// PeerAuthentication says whether pods accept connections that are not mutual
// TLS between workload identities.
//
// The most specific one decides: one with a selector over one for the namespace,
// that over one for the mesh, which is one without a selector in the system
// namespace. Between two that are equally specific the older decides, and the
// status of the other says so. Where none says anything, plaintext is accepted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=peerauthentications,scope=Namespaced,categories=ambit
// +kubebuilder:printcolumn:name="MODE",type=string,JSONPath=`.spec.mtls.mode`
// +kubebuilder:printcolumn:name="ACCEPTED",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="IN FORCE",type=string,JSONPath=`.status.inForce`
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type PeerAuthentication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	// +optional
	Spec PeerAuthenticationSpec `json:"spec,omitempty"`
	// Status is what became of it.
	// +optional
	Status PolicyStatus `json:"status,omitempty"`

	// Unread are the fields of Spec that were stored, and that this version does not
	// know. It is no field of the object, but of what was read.
	Unread []string `json:"-"`
}

// PeerAuthenticationSpec says which pods accept what.
//
// +kubebuilder:validation:XValidation:rule="!has(self.portLevelMtls) || has(self.selector)",message="portLevelMtls needs a selector: ports differ from one application to the next",fieldPath=".portLevelMtls"
type PeerAuthenticationSpec struct {
	// Selector picks the pods. Without it they are all of the namespace, or all
	// of the mesh in the system namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// MTLS is the mode of all ports. Left out or UNSET, it is that of the less
	// specific policy.
	// +optional
	MTLS *PeerMTLS `json:"mtls,omitempty"`
	// PortLevelMTLS is the modes of single ports, by their number: the port that
	// the application listens on, not that of a Service.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(key, key in ['1','2','3','4','5','6','7','8','9'] || (key.size() >= 2 && key.size() <= 5 && key.matches('^[1-9][0-9]{1,4}$') && int(key) <= 65535))",message="the keys are port numbers, 1 to 65535"
	PortLevelMTLS map[string]PeerMTLS `json:"portLevelMtls,omitempty"`
}

// PeerMTLS is a mode.
type PeerMTLS struct {
	// Mode is STRICT: only mutual TLS is accepted; PERMISSIVE: plaintext is
	// accepted too; DISABLE: as PERMISSIVE, and pods of the mesh use tunnels all
	// the same; UNSET: as the less specific policy says.
	// +optional
	Mode MutualTLSMode `json:"mode,omitempty"`
}

// PeerAuthenticationList is a list of peer authentications.
//
// +kubebuilder:object:root=true
type PeerAuthenticationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerAuthentication `json:"items"`
}
