// Package v1alpha1 is the Kubernetes API group ambit.mesh, version v1alpha1.
//
// A Workload object exists for every pod of an enrolled namespace and every
// pod that bears the enrolment label itself. It is owned by its pod. Its
// status is what the pod's node observed, not what anybody hopes.
//
// The deep-copy code and the CustomResourceDefinition in deploy/manifests/crds
// are generated from these types by controller-gen and committed.
//
// +kubebuilder:object:generate=true
// +groupName=ambit.mesh
package v1alpha1
