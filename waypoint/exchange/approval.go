package exchange

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// Approval is a provider's word for a request, under a policy.
type Approval struct {
	// Policy as it was when the provider was asked.
	Policy any
	// Request and Response, if not nil, change what goes on, and what comes back.
	Request, Response func([]http1.Field) []http1.Field
}

// approvals of a request, by the names of policies. They are looked at by whoever judges
// the request anew, while it may be given another one.
type approvals struct {
	mu sync.Mutex
	// Guarded by mu.
	names []string
	all   []Approval
}

// clone is for a copy of the request.
func (a *approvals) clone() *approvals {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &approvals{names: slices.Clone(a.names), all: slices.Clone(a.all)}
}

// Approve notes that the provider of a policy agreed.
func (r *Request) Approve(name string, a Approval) {
	r.approvals.mu.Lock()
	defer r.approvals.mu.Unlock()
	r.approvals.names, r.approvals.all = append(r.approvals.names, name), append(r.approvals.all, a)
}

// Approved finds the word of a policy's provider.
func (r *Request) Approved(name string) (Approval, bool) {
	if r.approvals == nil { // of a test
		return Approval{}, false
	}
	r.approvals.mu.Lock()
	defer r.approvals.mu.Unlock()
	if i := slices.Index(r.approvals.names, name); i >= 0 {
		return r.approvals.all[i], true
	}
	return Approval{}, false
}

// approvedSince are those that came after the first n.
func (r *Request) approvedSince(n int) []Approval {
	if r.approvals == nil {
		return nil
	}
	r.approvals.mu.Lock()
	defer r.approvals.mu.Unlock()
	return slices.Clone(r.approvals.all[min(n, len(r.approvals.all)):])
}

// Refusal is a provider's answer in place of the endpoint's.
type Refusal struct {
	Status int
	Fields []http1.Field
	Body   []byte
	Why    string
}

func (r *Refusal) Error() string { return r.Why }

// admit judges the request, and asks providers if theirs is the word that is missing.
// Its error is always a *conns.Failure.
func (x *exchange) admit(ctx context.Context, endpoint *workload.Workload, at netip.AddrPort) error {
	p, client := x.client.engine.cfg.Policies, x.client.session.Client
	err := p.Request(x.snapshot, x.target, client, x.request, endpoint, at)
	if err == nil || conns.ReasonOf(err) != NotAsked {
		return err
	}
	before := len(x.request.approvedSince(0))
	if err := p.Ask(ctx, x.snapshot, x.target, client, x.request, endpoint, at); err != nil {
		return err
	}
	if endpoint != nil { // what goes on has been made already
		x.approve(before)
	}
	return p.Request(x.snapshot, x.target, client, x.request, endpoint, at)
}

// approve changes what goes on by the approvals that came after the first n.
func (x *exchange) approve(n int) {
	for _, a := range x.request.approvedSince(n) {
		if a.Request != nil {
			x.outgoing.Fields = a.Request(x.outgoing.Fields)
		}
	}
}

// answerRefusal gives the client what a provider says. Clients of gRPC get a status.
func (x *exchange) answerRefusal(r *Refusal) {
	x.flag, x.detail = flagNotProven, r.Why
	empty := len(r.Body) == 0 || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
	if x.headed || isGRPC(x.request) || empty {
		x.answer(r.Status, flagNotProven, r.Why, r.Fields)
		return
	}
	x.status, x.headed = r.Status, true
	if x.responder.Head(r.Status, r.Fields, int64(len(r.Body))) != nil {
		return
	}
	if x.request.Method != http.MethodHead {
		n, err := x.responder.Write(r.Body)
		if x.sent = int64(n); err != nil {
			return
		}
	}
	x.ended = x.responder.End(nil) == nil
}
