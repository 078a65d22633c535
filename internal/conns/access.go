package conns

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// The message of every line, so that one filter finds them.
const accessMessage = "connection"

func (r *Registry) logEnd(c *Conn, reason Reason, err error) {
	if !r.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	// Sent and received are the pod's own view: of the source if outbound, of
	// the destination if inbound.
	sent, received := c.Bytes()
	if c.Direction == Inbound {
		sent, received = received, sent
	}
	flags := "-"
	if reason.policy() {
		flags = reason.Flags()
	}
	r.write(slog.LevelInfo, &c.Attempt, sent, received, reason, flags, err)
}

func (r *Registry) logFailure(a *Attempt, reason Reason, err error) {
	suppressed, ok := r.failures.allow(a.Source.Addr.Addr())
	if !ok {
		return
	}
	var more []slog.Attr
	if suppressed > 0 {
		more = append(more, slog.Int("suppressed", suppressed))
	}
	r.write(slog.LevelWarn, a, 0, 0, reason, reason.Flags(), err, more...)
}

// write logs one connection by the keys that the ecosystem's tools read. What is
// not known is left out.
func (r *Registry) write(level slog.Level, a *Attempt, sent, received int64, reason Reason, flags string, err error, more ...slog.Attr) {
	attrs := make([]slog.Attr, 0, 24)
	attrs = appendPeer(attrs, "src.", a.Source)
	if a.Client.IsValid() {
		attrs = appendAddr(attrs, "client.addr", a.Client)
	}
	if a.Tunnel.IsValid() {
		attrs = appendAddr(attrs, "dst.addr", a.Tunnel)
		attrs = appendAddr(attrs, "dst.hbone_addr", a.Destination.Addr)
	} else {
		attrs = appendAddr(attrs, "dst.addr", a.Destination.Addr)
	}
	if a.Service != nil {
		attrs = append(attrs, slog.String("dst.service", a.Service.Hostname))
	}
	dst := a.Destination
	dst.Addr = netip.AddrPort{}
	attrs = appendPeer(attrs, "dst.", dst)
	if len(a.Names) > 0 {
		attrs = append(attrs, slog.Any("dst.names", a.Names))
	}
	attrs = append(attrs,
		slog.String("direction", string(a.Direction)),
		slog.String("transport", string(a.Transport)),
		slog.Int64("bytes_sent", sent),
		slog.Int64("bytes_recv", received),
		slog.String("duration", strconv.FormatInt(r.now().Sub(a.Started).Milliseconds(), 10)+"ms"),
		slog.String("reason", string(reason)),
		slog.String("response_flags", flags),
	)
	if a.Policy != "" {
		attrs = append(attrs, slog.String("policy", a.Policy))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	r.log.LogAttrs(context.Background(), level, accessMessage, append(attrs, more...)...)
}

func appendPeer(attrs []slog.Attr, prefix string, p Peer) []slog.Attr {
	attrs = appendAddr(attrs, prefix+"addr", p.Addr)
	if p.Workload != nil {
		attrs = append(attrs,
			slog.String(prefix+"workload", p.Workload.Name),
			slog.String(prefix+"namespace", p.Workload.Namespace))
	}
	if p.Identity != (spiffe.ID{}) {
		attrs = append(attrs, slog.String(prefix+"identity", p.Identity.String()))
	}
	return attrs
}

func appendAddr(attrs []slog.Attr, key string, addr netip.AddrPort) []slog.Attr {
	if addr.IsValid() {
		attrs = append(attrs, slog.String(key, addr.String()))
	}
	return attrs
}
