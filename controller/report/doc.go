// Package report knows what the nodes observe, and decides what that means for
// the protocol over which others reach a pod.
//
//	server.go     one stream per ztunnel: who it is, and what it may speak of
//	session.go    the open stream of a node; the newest counts
//	registry.go   what is known of the nodes
//	observe.go    what a node says of its pods
//	captured.go   the set of pods that are published as HBONE
//	withdraw.go   from WITHDRAWING to Release
//	lift.go       what comes first: the pod takes plaintext besides tunnels
//	heartbeat.go  sign of life of each node, kept in a Lease
//	skew.go       how far nodes' clocks are from this process's
//	tunnels.go    which silent nodes may still act on old configuration
//
// A pod becomes HBONE when its node reports CAPTURED and that is written into
// its Workload object: [Registry.Remember] comes after the write, never before.
// So whatever has been published survives any crash of the controller. It ceases
// to be HBONE when its node asks for withdrawal, or when the pod object is gone:
//
//	node       WITHDRAWING
//	status     writes that it leaves                  -> Remember
//	translate  a publication in which plaintext is not refused by it -> Published
//	push       every known node has acknowledged it   <- Acks
//	status     writes protocol TCP                    -> Remember
//	translate  a publication without the pod's HBONE  -> Published
//	push       every known node has acknowledged it   <- Acks
//	registry   Release on the node's stream; repeated if the node asks again
//
// Invariants:
//   - No lost report, closed stream, silent node, missing snapshot entry or
//     restart takes a pod out of the captured set.
//   - An observation counts only for a pod that runs on the node that made it:
//     it is stored with its node and read by the pod's node and UID. A pod made
//     anew under its old name has another UID and starts uncaptured.
//   - A pod turns from tunnels to plaintext when all that leave with it take that, as
//     far as their nodes answer in time: no new connection fails.
//   - A node is released only when no node that could still be acting on an
//     earlier publication is left.
//   - Streams are served by the leader alone, so that one process knows all nodes.
//
// Writing Workload objects is status's job, publishing push's.
package report
