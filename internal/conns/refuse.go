package conns

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// RefuseTunnel tells of a tunnel that was not let in.
func (r *Registry) RefuseTunnel(a Attempt, reason Reason, err error) {
	r.metrics.refused.WithLabelValues(string(reason)).Inc()
	r.Fail(a, reason, err)
}

// EndTunnel tells of a tunnel that was ended for what its peer did. The
// connections in it are told of by themselves.
func (r *Registry) EndTunnel(a Attempt, reason Reason, err error) {
	r.metrics.refused.WithLabelValues(string(reason)).Inc()
	suppressed, ok := r.failures.allow(a.Source.Addr.Addr())
	if !ok {
		return
	}
	attrs := appendPeer(nil, "src.", a.Source)
	attrs = appendAddr(attrs, "dst.addr", a.Tunnel)
	attrs = append(attrs, slog.String("reason", string(reason)), slog.String("error", err.Error()))
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	r.log.LogAttrs(context.Background(), slog.LevelWarn, "tunnel ended", attrs...)
}

const (
	// failuresPerSecond is how many failures of one client address are logged, and
	// failureBurst how many at once: all that happens by itself. A flood that is
	// written down would fill the node's disk; all of it is counted.
	failuresPerSecond = 20
	failureBurst      = 500
	// maxLimiters is of how many addresses it is known how much they had logged.
	maxLimiters = 4096
)

// limiters bound what each client can have logged.
type limiters struct {
	mu sync.Mutex
	// Guarded by mu.
	byAddr map[netip.Addr]*limiter
}

type limiter struct {
	rate       *rate.Limiter
	suppressed int
}

// allow tells whether a failure is logged, and how many before it were not.
func (l *limiters) allow(addr netip.Addr) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byAddr[addr]
	if one == nil {
		if l.byAddr == nil || len(l.byAddr) >= maxLimiters {
			l.byAddr = map[netip.Addr]*limiter{} // some may then have a little more logged
		}
		one = &limiter{rate: rate.NewLimiter(failuresPerSecond, failureBurst)}
		l.byAddr[addr] = one
	}
	if !one.rate.Allow() {
		one.suppressed++
		return 0, false
	}
	suppressed, one.suppressed = one.suppressed, 0
	return suppressed, true
}
