package exchange

import (
	"slices"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// Outgoing is what of a request goes on to an endpoint, besides its body. Routes change
// it; policy and the log have the request as it came.
type Outgoing struct {
	Authority string
	// Path with its query.
	Path   string
	Fields []http1.Field
}

// depart makes the outgoing request from the one that came, by the plan.
func (x *exchange) depart() {
	r := x.request
	x.outgoing = Outgoing{Authority: r.Authority, Path: r.Path, Fields: r.Fields}
	if x.plan.Request != nil {
		x.outgoing.Fields = slices.Clone(r.Fields)
		x.plan.Request(&x.outgoing)
	}
	x.approve(0)
	x.sendSpan()
}
