package conns

// Reason says why a connection ended or was refused. It is the same word in the
// access log and in the metrics. Those of relay and route are Reasons too, by
// their own words; these are the others.
type Reason string

const (
	// Closed: both halves ended in order. The same word as relay's.
	Closed Reason = "closed"
	// Drained: still open when the time to drain was over.
	Drained Reason = "drained"
	// PolicyDenied: policy does not admit it, or no longer.
	PolicyDenied Reason = "policy_denied"
	// UnknownSource: nothing is known of the pod that it comes from.
	UnknownSource Reason = "unknown_source"
	// UnknownTarget: nothing is known of the pod that it is for.
	UnknownTarget Reason = "unknown_target"
	// BadTarget: the peer asked for a target that is not behind its tunnel.
	BadTarget Reason = "bad_target"
	// Loop: it came from this very tunnel.
	Loop Reason = "loop"
	// ConnectFailed: the target could not be reached.
	ConnectFailed Reason = "connect_failed"
	// TunnelFailed: no tunnel to the target's node could be made.
	TunnelFailed Reason = "tunnel_failed"
	// TLSFailed: the peer could not be authenticated, or did not accept us.
	TLSFailed Reason = "tls_failed"
	// IdentityFailed: no certificate for the pod's own identity.
	IdentityFailed Reason = "identity_failed"
	// TunnelRefused: the far end of the tunnel refused the target.
	TunnelRefused Reason = "tunnel_refused"
)

// Flags is the ecosystem's response_flags for a failed connection.
func (r Reason) Flags() string {
	switch r {
	case PolicyDenied:
		return "DENY"
	case TLSFailed:
		return "TLS_FAILURE"
	case IdentityFailed:
		return "IDENTITY_ERROR"
	case TunnelFailed:
		return "H2_HANDSHAKE_FAILURE"
	default:
		return "CONNECT"
	}
}
