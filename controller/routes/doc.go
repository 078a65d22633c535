// Package routes tells people what became of the routes that they attach to
// Services: RouteParentStatus, as the Gateway API has it.
//
//	describe.go  what became of a route -> its status; pure
//	keep.go      what triggers that, and the writes
//
// Invariants: only the leader writes; only changes are written; entries of other
// controllers, and of parents that are none of ours, are left as they are, where
// they are; a condition is about the generation that it names.
//
// What routes mean is translate's job, reading them watch's.
package routes
