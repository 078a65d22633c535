// Package gateway runs waypoints: for each Gateway of our class a Deployment, a
// Service, a ServiceAccount and a PodDisruptionBudget, named after it and owned by
// it, and beside them the roots by which the waypoint knows the controller.
//
//	objects.go   Gateway -> objects; pure
//	describe.go  what became of a Gateway -> its status; pure
//	bound.go     what became of a Service that is bound -> a condition of it
//	reconcile.go what triggers that, and the writes
//
// It is level-based: each pass applies what is wanted of all Gateways, of which the
// API server changes only what differs. What goes with a Gateway goes by its owner
// references.
//
// Invariants: only the leader writes; fields that others set, such as the number of
// replicas, are theirs; conditions of others are left as they are; a Gateway whose
// listeners are not those of a waypoint is refused with the field named, and what
// already runs for it goes on.
//
// What is bound to a waypoint is translate's matter.
package gateway
