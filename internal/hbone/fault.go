package hbone

import (
	"errors"

	"golang.org/x/net/http2"
)

// Fault is what a peer did for which its tunnel was ended: one word, the same in
// the log and in the metrics.
type Fault string

const (
	// ProtocolError: it broke the rules of HTTP/2.
	ProtocolError Fault = "ProtocolError"
	// ResetFlood: requests that it reset, or that were such that this side had to.
	ResetFlood Fault = "ResetFlood"
	// HeaderFlood: headers that are far too long, or in too many frames.
	HeaderFlood Fault = "HeaderFlood"
	// The other floods: frames that carry nothing, by their kind.
	PingFlood         Fault = "PingFlood"
	SettingsFlood     Fault = "SettingsFlood"
	PriorityFlood     Fault = "PriorityFlood"
	GoAwayFlood       Fault = "GoAwayFlood"
	WindowUpdateFlood Fault = "WindowUpdateFlood"
	EmptyDataFlood    Fault = "EmptyDataFlood"
	UnknownFrameFlood Fault = "UnknownFrameFlood"
	// UnreadAnswers: it asks and does not read.
	UnreadAnswers Fault = "UnreadAnswers"
	// SlowPreface: it shook hands, and then did not begin in time.
	SlowPreface Fault = "SlowPreface"
	// PeerSilent: it does not answer pings.
	PeerSilent Fault = "PeerSilent"
)

// FaultOf is what the peer of a tunnel did that ended with err, as [Serve] and
// [Client.Err] return it; empty if it is not to blame.
func FaultOf(err error) Fault {
	var broken connectionError
	switch {
	case errors.As(err, &broken):
		return broken.fault
	case errors.Is(err, ErrPeerSilent):
		return PeerSilent
	}
	return ""
}

// flood ends a tunnel whose peer makes work that serves nothing.
func flood(fault Fault, of string) error {
	return connectionError{http2.ErrCodeEnhanceYourCalm, fault, "peer floods with " + of}
}

// floodOf is the flood that a frame of a kind belongs to.
func floodOf(kind http2.FrameType) Fault {
	switch kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		return HeaderFlood
	case http2.FramePing:
		return PingFlood
	case http2.FrameSettings:
		return SettingsFlood
	case http2.FramePriority:
		return PriorityFlood
	case http2.FrameGoAway:
		return GoAwayFlood
	}
	return UnknownFrameFlood
}
