// Package pods knows the pods of this node, and keeps each one captured or
// left alone, as Kubernetes asks.
//
//	Kubernetes (pods of this node, namespaces) --+
//	CNI plugin (a new sandbox, a sandbox's end) --+--> facts, one set a pod
//	controller (a release)                      --+
//	facts -> worker, one a pod: Next(observation) -> capture, release, close, forget
//	worker -> Status, for reports and the operator
//	files: pods.json (what is captured and what else is enrolled, for the next
//	start), enrolment.json (for the CNI gate); checksummed, and ignored in doubt
//
// Invariants:
//   - A pod is captured only in a network namespace that provably is its own:
//     the CNI plugin's word, or exactly one namespace with the pod's addresses
//     that is not younger than what Kubernetes says of the pod.
//   - A capture ends only with its sandbox, or by the controller's release. A
//     pod object that vanishes, a label that is not understood or an API server
//     that does not answer end nothing.
//   - What Kubernetes does not say, because it does not answer, the last process's
//     word stands in for: a pod that it knew to be enrolled is captured in
//     whatever sandbox the kubelet makes it.
//   - Workers share nothing but facts: one that hangs holds back no other.
//   - When Run returns, so has every goroutine it started; what is pinned stays.
//
// How a pod is captured and its connections are carried is behind [Dataplane].
package pods
