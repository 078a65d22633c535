package variant

import (
	"context"
	"net/netip"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
)

// direct is no variant at all.
type direct struct{ Site }

// None is a client that connects to a backend.
func None(_ context.Context, site Site) (Proxy, error) { return direct{site}, nil }

func (d direct) Target() load.Target {
	return load.Target{Carrier: load.Plain, Address: netip.AddrPortFrom(d.Backend.IPv4, plan.FirstPort), Direct: true}
}
func (direct) Processes() []int     { return nil }
func (direct) Version() string      { return "" }
func (direct) Trim() (int64, error) { return 0, nil }
func (direct) Stop() error          { return nil }
