package exchange

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

const (
	// maxMirrored is how many copies are under way at once; more are left out, as
	// copies are worth less than what they are copies of.
	maxMirrored = 256
	// mirrorTimeout bounds one.
	mirrorTimeout = 15 * time.Second
)

// mirror sends copies of the request. One with a body is copied if that is small and
// its length is known: the whole of it is read first.
func (x *exchange) mirror() {
	r := x.request
	if len(x.plan.Mirrors) == 0 || r.Upgrade != "" || r.body != nil && (r.length < 0 || r.length > replayable) {
		return
	}
	if r.body != nil {
		if _, err := io.CopyN(io.Discard, r, r.length); err != nil || !r.rewind() {
			return // whoever sends it finds out what is wrong
		}
	}
	for _, m := range x.plan.Mirrors {
		select {
		case x.client.engine.mirrored <- struct{}{}:
		default:
			continue
		}
		c := &client{
			engine: x.client.engine, session: x.client.session, draining: x.client.draining, cut: x.client.draining, secondVersion: x.client.secondVersion,
			idle: map[netip.AddrPort][]*server1{}, multiplexed: map[netip.AddrPort]*server2{}, running: map[*exchange]struct{}{},
		}
		request := *r
		request.ctx = nil
		request.approvals = r.approvals.clone()
		if r.body != nil {
			request.body, request.kept, request.at, request.lost, request.inline = bytes.NewReader(r.kept), nil, 0, false, true
			request.stop, request.trailers = func() {}, nil
		}
		shadow := &exchange{
			client: c, request: &request, outgoing: x.outgoing, responder: nobody{}, started: time.Now(), snapshot: x.snapshot, target: x.target,
			plan: Plan{Route: x.plan.Route, Rule: x.plan.Rule, Service: m.Service, Port: m.Port, Timeout: mirrorTimeout},
		}
		c.engine.mirroring.Go(func() {
			defer func() { <-c.engine.mirrored }()
			defer c.close()
			ctx, cancel := context.WithTimeoutCause(c.cut, mirrorTimeout, errTimeout)
			defer cancel()
			shadow.attempt(ctx)
		})
	}
}

// nobody waits for the responses to copies.
type nobody struct{}

func (nobody) Inform(int, []http1.Field) error      { return nil }
func (nobody) Head(int, []http1.Field, int64) error { return nil }
func (nobody) Write(p []byte) (int, error)          { return len(p), nil }
func (nobody) Flush() error                         { return nil }
func (nobody) End([]http1.Field) error              { return nil }
func (nobody) Abort()                               {}
