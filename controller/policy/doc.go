// Package policy reads the policies that people write, and tells them what
// became of each: whether it is in force as it is written, on how many of the
// nodes that have to enforce it, and in which version.
//
//	client.go    writes policies' status
//	read.go      reads policies, and what of them this version does not know
//	describe.go  what became of a policy -> its status; pure
//	progress.go  which nodes work with which policy
//	keep.go      what triggers that, and the writes
//
// A node has to enforce a policy if a captured pod that it applies to runs
// there. The policy is in force on it once every proxy of the node acknowledged
// the policy and the workloads that name it. A node whose proxy connects anew
// keeps what it had for a moment: a policy that flickers is read by nobody.
//
// Nor is it in force where a pod that it applies to runs, and is to be captured, and is not.
// Where that is only just so, since the pod was enrolled while it ran, it is on its way; later
// it is a fault, and said to be one.
//
// Invariants: a policy with a field that is not known is told to be Unread, and never
// taken for what the rest of it says; only the leader writes; only changes are written, and not more
// often than once a second for each policy; conditions of others are left as
// they are; a status is about the generation that it names.
//
// What policies mean is translate's job, what proxies hold push's.
package policy
