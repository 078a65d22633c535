// Package v1alpha1 is the Kubernetes API group ambit.mesh, version v1alpha1.
//
// A Workload object exists for every pod of an enrolled namespace and every
// pod that bears the enrolment label itself. It is owned by its pod. Its
// status is what the pod's node observed, not what anybody hopes.
//
// PeerAuthentication, AuthorizationPolicy, RequestAuthentication and EgressPolicy are
// what people want. The first three have the shape that the field gave them, so that what was written
// for another mesh can be moved. What cannot be meant is refused by the API
// server, with the field named; their status says where they are in force.
//
// The deep-copy code and the CustomResourceDefinitions in deploy/manifests/crds
// are generated from these types by controller-gen and committed.
//
// +kubebuilder:object:generate=true
// +groupName=ambit.mesh
package v1alpha1
