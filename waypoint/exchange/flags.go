package exchange

import (
	"net/http"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// Flag is what became of a request, as the field's operators search for it.
type Flag string

// The flags: Envoy's, where it has them.
const (
	NoFlag Flag = "-"
	// NoRoute: no rule matches.
	NoRoute          Flag = "NR"
	flagNoEndpoint   Flag = "UH"
	flagUnreachable  Flag = "UF"
	flagUpstreamGone Flag = "UC"
	flagProtocol     Flag = "UPE"
	flagTimeout      Flag = "UT"
	flagClientGone   Flag = "DC"
	flagMalformed    Flag = "DPE"
	flagDenied       Flag = "RBAC"
	flagNotKnown     Flag = "NC"
	flagNotProven    Flag = "UAEX"
	// Invalid: what the route says cannot be carried out.
	Invalid Flag = "INV"
)

const (
	timedOut         conns.Reason = "Timeout"
	clientGone       conns.Reason = "ClientGone"
	upstreamGone     conns.Reason = "UpstreamGone"
	upstreamProtocol conns.Reason = "UpstreamProtocol"
	// BadRequest: it could be read in two ways.
	BadRequest conns.Reason = "BadRequest"
	// NotAsked: policy wants a provider's word, which nobody has asked for.
	NotAsked conns.Reason = "NotAsked"
	// ProviderDenied: a provider refused it, or could not be asked.
	ProviderDenied conns.Reason = "ProviderDenied"
	// Unauthenticated: it bears a token that is no good.
	Unauthenticated conns.Reason = "Unauthenticated"
)

// verdictOf is the answer to a request that does not go on. A status of 0 means that
// nobody is left to answer.
func verdictOf(reason conns.Reason) (status int, flag Flag) {
	switch reason {
	case conns.PolicyDenied:
		return http.StatusForbidden, flagDenied
	case conns.PolicyMissing, target.NotBound, target.UnknownPort, conns.Loop:
		return http.StatusServiceUnavailable, flagNotKnown
	case upstream.NoEndpoint, upstream.NotCaptured:
		return http.StatusServiceUnavailable, flagNoEndpoint
	case timedOut:
		return http.StatusGatewayTimeout, flagTimeout
	case clientGone:
		return 0, flagClientGone
	case upstreamGone:
		return http.StatusServiceUnavailable, flagUpstreamGone
	case upstreamProtocol:
		return http.StatusBadGateway, flagProtocol
	case NotAsked, ProviderDenied:
		return http.StatusForbidden, flagNotProven
	case Unauthenticated:
		return http.StatusUnauthorized, flagNotProven
	case BadRequest:
		return http.StatusBadRequest, flagMalformed
	}
	return http.StatusServiceUnavailable, flagUnreachable
}
