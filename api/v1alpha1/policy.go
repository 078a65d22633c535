package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DryRunAnnotation makes a policy audit-only if its value is "true": what it
// would have refused is counted and logged, and let pass.
const DryRunAnnotation = "ambit.mesh/dry-run"

// LabelValue is the value of a label.
//
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`
type LabelValue string

// WorkloadSelector picks pods by their labels: those of the policy's namespace,
// or those of the mesh if the policy is in the system namespace.
type WorkloadSelector struct {
	// MatchLabels are labels that a pod must have, every one of them, with these
	// values. There are no wildcards.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(key, key.size() > 0 && key.size() <= 317 && !key.contains('*'))",message="a label's key has 1 to 317 characters and no wildcard"
	MatchLabels map[string]LabelValue `json:"matchLabels"`
}

// Types of the conditions of every policy.
const (
	// ConditionAccepted: what is written can be enforced as it is written.
	// Otherwise the reason says what cannot, the message names the field, and
	// the stricter reading is in force.
	ConditionAccepted = "Accepted"
	// ConditionInForce: every node, and every waypoint, that has to enforce the
	// policy works with this version of it.
	ConditionInForce = "InForce"
)

// PolicyStatus says what became of a policy.
type PolicyStatus struct {
	// ObservedGeneration is the generation of the spec that this is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// InForce is on how many nodes the policy is in force, of those that have to
	// enforce it, such as 3/3. A node has to if a captured pod that the policy
	// applies to runs on it. Waypoints that have to ask it count as well.
	// +optional
	InForce string `json:"inForce,omitempty"`
	// Version of the policy as nodes have it: a hash of its content.
	// +optional
	Version string `json:"version,omitempty"`
	// Workloads is the number of pods that the policy applies to.
	// +optional
	Workloads int32 `json:"workloads"`
	// Conditions are Accepted and InForce, and what others may add.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PolicyStatus of the object.
func (p *PeerAuthentication) PolicyStatus() *PolicyStatus { return &p.Status }

// PolicyStatus of the object.
func (p *AuthorizationPolicy) PolicyStatus() *PolicyStatus { return &p.Status }

// PolicyStatus of the object.
func (p *EgressPolicy) PolicyStatus() *PolicyStatus { return &p.Status }

// PolicyStatus of the object.
func (p *RequestAuthentication) PolicyStatus() *PolicyStatus { return &p.Status }
