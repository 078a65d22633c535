package conns

import (
	"crypto/x509"
	"errors"

	"github.com/ambit-mesh/ambit/internal/revocation"
)

// Reason says why a connection ended or was refused. It is the same word in the
// access log and in the metrics. The words of relay and route, and what hbone
// calls the faults of a peer, are Reasons too; these are the others.
type Reason string

const (
	// Closed: both halves ended in order. The same word as relay's.
	Closed Reason = "Closed"
	// Drained: still open when the time to drain was over.
	Drained Reason = "Drained"
	// PolicyDenied: policy does not admit it, or no longer.
	PolicyDenied Reason = "PolicyDenied"
	// PolicyMissing: a policy that applies has not come, and nobody knows what it says.
	PolicyMissing Reason = "PolicyMissing"
	// WaypointBypassed: the destination takes connections from its waypoint alone.
	WaypointBypassed Reason = "WaypointBypassed"
	// Distrusted: the peer's certificate is no longer one to be trusted.
	Distrusted Reason = "Distrusted"
	// Revoked: the peer's certificate, or that of an authority above it, is revoked.
	Revoked Reason = "Revoked"
	// Expired: the peer's certificate has ended, and it has shown no other.
	Expired Reason = "Expired"
	// TunnelRequired: the pod at the other end takes nothing in plaintext any more.
	TunnelRequired Reason = "TunnelRequired"
	// EgressDenied: policy does not let it out of the mesh, or no longer.
	EgressDenied Reason = "EgressDenied"
	// EgressUnknown: a policy that decides on it has not come.
	EgressUnknown Reason = "EgressUnknown"
	// CutByDestination: the destination's side ended it.
	CutByDestination Reason = "CutByDestination"
	// UnknownDestination: the controller could not be asked what it is.
	UnknownDestination Reason = "UnknownDestination"
	// Unclaimed: it stood, but the application had given up by then.
	Unclaimed Reason = "Unclaimed"
	// DeliveryFailed: the destination's pod on this node did not take it.
	DeliveryFailed Reason = "DeliveryFailed"
	// TunnelLost: the tunnel that carried it is gone.
	TunnelLost Reason = "TunnelLost"
	// UnknownTarget: nothing is known of the pod that it is for.
	UnknownTarget Reason = "UnknownTarget"
	// BadTarget: the peer asked for a target that is not behind its tunnel.
	BadTarget Reason = "BadTarget"
	// BadForwarded: a waypoint did not say for whom it connects, or not so that it
	// can be read.
	BadForwarded Reason = "BadForwarded"
	// Loop: it came from this very tunnel.
	Loop Reason = "Loop"
	// ConnectFailed: the target could not be reached.
	ConnectFailed Reason = "ConnectFailed"
	// TunnelFailed: no tunnel to the target's node could be made.
	TunnelFailed Reason = "TunnelFailed"
	// TLSFailed: the peer could not be authenticated, or did not accept us.
	TLSFailed Reason = "TLSFailed"
	// IdentityFailed: no certificate for the pod's own identity.
	IdentityFailed Reason = "IdentityFailed"
	// TooManyHandshakes: the peer's address has as many tunnels under way as it
	// may, or made room for those of others.
	TooManyHandshakes Reason = "TooManyHandshakes"
	// TooManyTunnels: the peer's address or identity has as many as it may.
	TooManyTunnels Reason = "TooManyTunnels"
	// TooManyConnections: the client's address or identity has as many as it may.
	TooManyConnections Reason = "TooManyConnections"
	// Overloaded: the node carries so much that the pod gets no more than its share.
	Overloaded Reason = "Overloaded"
	// TunnelRefused: the far end of the tunnel refused the target.
	TunnelRefused Reason = "TunnelRefused"
)

// policy tells whether r is about who may connect, whatever the network says.
func (r Reason) policy() bool {
	return r == PolicyDenied || r == PolicyMissing || r == WaypointBypassed || r == TunnelRequired || r == EgressDenied || r == EgressUnknown
}

// Flags is the ecosystem's response_flags for a failed connection, or one that
// policy ended.
func (r Reason) Flags() string {
	if r.policy() {
		return "DENY"
	}
	switch r {
	case TLSFailed, Revoked, Distrusted, Expired:
		return "TLS_FAILURE"
	case IdentityFailed:
		return "IDENTITY_ERROR"
	case TunnelFailed:
		return "H2_HANDSHAKE_FAILURE"
	default:
		return "CONNECT"
	}
}

// Failure is an error with the reason that it is for a connection.
type Failure struct {
	Reason Reason
	Err    error
}

// Fail makes a Failure.
func Fail(reason Reason, err error) *Failure { return &Failure{reason, err} }

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// FailHandshake makes a Failure of why a peer was not authenticated.
func FailHandshake(err error) *Failure {
	if errors.Is(err, revocation.ErrRevoked) {
		return Fail(Revoked, err)
	}
	return Fail(TLSFailed, err)
}

// Distrust makes a Failure of why a peer that was authenticated is trusted no longer.
func Distrust(err error) *Failure {
	if errors.Is(err, revocation.ErrRevoked) {
		return Fail(Revoked, err)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return Fail(Expired, err)
	}
	return Fail(Distrusted, err)
}

// ReasonOf is the innermost reason that err was given, or else ConnectFailed.
func ReasonOf(err error) Reason {
	reason := ConnectFailed
	for f := (*Failure)(nil); errors.As(err, &f); err = f.Err {
		reason = f.Reason
	}
	return reason
}
