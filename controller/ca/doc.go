// Package ca is the mesh's certificate authority: it keeps the root, knows who
// asks, and signs what they may have.
//
//	rootstore.go     the root in its Secret: create once, never overwrite
//	rootwatch.go     what becomes of that Secret later
//	issuer.go        what leaves are signed with: an intermediate below the root
//	plugin.go        an issuer of somebody else's, from the Secret ambit-ca-plugin
//	bundle.go        which roots are trusted and which one signs: a pure state machine
//	state.go         the Secret in which that outlives a controller
//	want.go          what is to sign
//	keeper.go        brings the one about, step by step
//	revoke.go        what is revoked: the ConfigMap that keeps it, requests, what has ended
//	revoked.go       the list, and what a request makes of it: pure
//	crl.go           X.509 CRLs of a plug-in's authorities
//	publish.go       the ConfigMap that bootstraps trust, and shows the state to people
//	root.go          the root itself, and what makes a stored one acceptable
//	authenticate.go  a projected token -> Peer, by TokenReview
//	authorize.go     Peer and requested identity -> yes, or the reason why not
//	audit.go         who was refused what, and why: a metric and a line in the log
//	pods.go          which pods there are, and on which node
//	request.go       what a certificate signing request may contain
//	issue.go         sign a workload's certificate
//	serving.go       the controller's own certificate
//	record.go        what a leader leaves to the next one is signed too
//	server.go        the gRPC service over all of that
//
// Invariants:
//   - A new root signs only after every node acknowledged the bundle with it, or
//     was away for as long as any certificate lives; the former one leaves the
//     bundle only after the last leaf below it has ended or been replaced.
//   - A plug-in that is not valid, or is gone, changes nothing about what runs.
//   - A root that exists is never replaced but by a rotation. A Secret that is malformed, expired
//     or holds another key than its certificate's is a [Problem] for a person to
//     solve, and no certificate is issued meanwhile. A Secret that vanished while
//     its root is still published is [RootLost], unless a running controller has
//     the root in memory: then the same root is put back.
//   - Nobody is served before it is known what is revoked; a list that is lost or
//     damaged is restored from memory, or a person has to; a CRL that is not valid
//     takes nothing back. What signs is never revoked.
//   - Nothing of a certificate but its public key comes from the request: the one
//     URI name is the identity that was authorised.
//   - Everyone gets a certificate for its own identity only, except ztunnel, and
//     that one only for identities of pods on its own node.
//   - A caller learns that it was refused, never why; the log has the reason.
//
// Pushing the trust bundle to data planes is push's job.
package ca
