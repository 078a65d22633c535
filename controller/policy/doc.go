// Package policy reads the policies that people write, and tells them what
// became of each: whether it is in force as it is written, on how many of the
// nodes that have to enforce it, and in which version.
//
//	client.go  reads policies, writes their status
//
// What policies mean is translate's job.
package policy
