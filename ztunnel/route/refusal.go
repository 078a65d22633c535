package route

import "fmt"

// Reason why a connection is refused: one word, the same in errors, logs and metrics.
type Reason string

const (
	// UnknownSource: the connecting pod is not known.
	UnknownSource Reason = "UnknownSource"
	// Loop: the destination is the mesh itself, or the pod's own loopback.
	Loop Reason = "Loop"
	// UnknownPort: the service has no such port.
	UnknownPort Reason = "UnknownPort"
	// NoEndpoint: the service has no endpoint that may be used.
	NoEndpoint Reason = "NoEndpoint"
	// NotVisible: the service is not for clients of other namespaces.
	NotVisible Reason = "NotVisible"
	// WaypointUnavailable: the destination is behind a waypoint of which no pod can be
	// reached, and going there without it would leave out its policy.
	WaypointUnavailable Reason = "WaypointUnavailable"
	// StrictUnknown: a strict source addresses what may be a pod or a Service, and nobody
	// knows which: it is not reached in plaintext.
	StrictUnknown Reason = "StrictUnknown"
	// NotCaptured: the destination refuses plaintext, and takes no tunnels before its
	// node has captured it.
	NotCaptured Reason = "NotCaptured"
	// NotConfigured: the mesh's configuration is not known yet, so nobody can
	// say what is outside of it.
	NotConfigured Reason = "NotConfigured"
	// Unreadable: the destination's configuration could not be read.
	Unreadable Reason = "Unreadable"
)

// Refusal is why a connection has no way.
type Refusal struct {
	Reason Reason
	Detail string
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

// Passes tells that waiting a little may help.
func (r *Refusal) Passes() bool { return r.Reason == NotCaptured }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
