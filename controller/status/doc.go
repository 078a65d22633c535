// Package status keeps the Workload objects: one for every pod of an enrolled
// namespace and every pod that bears the label itself, saying what the pod's
// node observed.
//
//	client.go     reads and writes Workload objects
//	enrolment.go  what the labels of a pod and its namespace ask for
//	describe.go   everything known of a pod -> the status that it shall have
//	reconcile.go  make one object be as it shall be
//	write.go      the writes, and the memory of the last ones
//	run.go        what triggers that; seeding the captured set
//
// The protocol in a Workload's status is the mesh's memory of who is captured:
// it is written before the pod is published as HBONE, and an object that still
// says HBONE is kept, whatever the labels say by now. See package report.
//
// STATE turns Stale when a node's heartbeat stops. A printer column cannot be
// computed when it is read, so this is one write for each Workload of the node,
// when it falls silent and when it comes back, paced by the client's rate limit.
// While nothing changes nothing is written: the heartbeat itself is the one
// Lease of the node, which also tells who reads it that the controller is down.
//
// Invariants: only the leader writes; only changes are written; an object is
// owned by its pod and carries the pod's UID, so it never speaks of the pod
// before or after; Stale never alters the protocol.
package status
