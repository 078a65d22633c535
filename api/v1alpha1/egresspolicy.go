package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EgressAction is what an EgressPolicy does.
//
// +kubebuilder:validation:Enum=Allow;Deny
type EgressAction string

const (
	// EgressAllow: everything may leave.
	EgressAllow EgressAction = "Allow"
	// EgressDeny: nothing may leave but the exceptions.
	EgressDeny EgressAction = "Deny"
)

// EgressPolicy says what pods may reach outside the mesh: whatever is neither a
// pod nor a Service that the mesh knows.
//
// The most specific one decides: one with a selector over one for the namespace,
// that over one for the mesh, which is one without a selector in the system
// namespace. Of several that are equally specific, Deny wins over Allow, and the
// exceptions of all that deny count. Where none says anything, everything may leave.
//
// Deny concerns every protocol: UDP, ICMP and whatever else a pod sends is
// dropped unless it is excepted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=egresspolicies,scope=Namespaced,categories=ambit
// +kubebuilder:printcolumn:name="ACTION",type=string,JSONPath=`.spec.action`
// +kubebuilder:printcolumn:name="ACCEPTED",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="IN FORCE",type=string,JSONPath=`.status.inForce`
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec EgressPolicySpec `json:"spec"`
	// Status is what became of it.
	// +optional
	Status PolicyStatus `json:"status,omitempty"`

	// Unread are the fields of Spec that were stored, and that this version does not
	// know. It is no field of the object, but of what was read.
	Unread []string `json:"-"`
}

// EgressPolicySpec says which pods may reach what.
//
// +kubebuilder:validation:XValidation:rule="self.action == 'Deny' || !has(self.exceptions)",message="exceptions are for Deny: Allow lets everything out anyway",fieldPath=".exceptions"
type EgressPolicySpec struct {
	// Selector picks the pods. Without it they are all of the namespace, or all
	// of the mesh in the system namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// Action is Allow: everything may leave; or Deny: nothing but the exceptions.
	Action EgressAction `json:"action"`
	// Exceptions are what a Deny lets pass.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Exceptions []EgressException `json:"exceptions,omitempty"`
}

// EgressException is a destination, ports, or a destination on ports.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && has(self.dnsName))",message="a destination is either a cidr or a dnsName: make two exceptions of it",fieldPath=".dnsName"
type EgressException struct {
	// CIDR is a range of addresses, such as 203.0.113.0/24, 192.0.2.7/32 or
	// 2001:db8::/32.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="write a CIDR such as 203.0.113.0/24 or 2001:db8::/32"
	CIDR string `json:"cidr,omitempty"`
	// DNSName is a name such as api.example.com, or *.example.com for every name
	// below example.com, of any depth, example.com itself not included. It stands
	// for the addresses that ztunnel learnt for it from the node's resolvers, for
	// as long as their answer is valid.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^(\*\.)?([a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?$`
	DNSName string `json:"dnsName,omitempty"`
	// Ports of the destination. Without them it is every port of every protocol.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ports []EgressPort `json:"ports,omitempty"`
}

// EgressProtocol is a protocol that has ports.
//
// +kubebuilder:validation:Enum=TCP;UDP;Any
type EgressProtocol string

const (
	// EgressTCP is TCP.
	EgressTCP EgressProtocol = "TCP"
	// EgressUDP is UDP, QUIC included.
	EgressUDP EgressProtocol = "UDP"
	// EgressAny is TCP and UDP.
	EgressAny EgressProtocol = "Any"
)

// EgressPort is a port or a range of ports.
//
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || self.endPort >= self.port",message="a range ends at or after the port it begins with",fieldPath=".endPort"
type EgressPort struct {
	// Port is the port, or the first of a range.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// EndPort is the last port of a range that begins with port.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	EndPort *int32 `json:"endPort,omitempty"`
	// Protocol is TCP, UDP (and so QUIC), or Any of the two.
	// +optional
	// +kubebuilder:default=TCP
	Protocol EgressProtocol `json:"protocol,omitempty"`
}

// EgressPolicyList is a list of egress policies.
//
// +kubebuilder:object:root=true
type EgressPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EgressPolicy `json:"items"`
}
