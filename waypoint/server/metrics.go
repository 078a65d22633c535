package server

import (
	"context"
	"errors"
	"net"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// serveMetrics takes a client to the metrics of the waypoint itself: pods of the mesh
// reach a waypoint's pod by tunnel alone, and who scrapes may be one. There is no policy
// about them, as there is none outside of the mesh.
func (s *Server) serveMetrics(cut, alive context.Context, attempt conns.Attempt, in *hbone.Incoming, refuse func(error)) {
	ctx, cancel := context.WithCancelCause(cut)
	defer cancel(nil)
	stop := context.AfterFunc(alive, func() { cancel(conns.Fail(conns.TunnelLost, errors.New("the client's tunnel is gone"))) })
	defer stop()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", attempt.Destination.Addr.String())
	if err != nil {
		refuse(conns.Fail(conns.ConnectFailed, err))
		return
	}
	defer server.Close()
	stream, err := in.Accept()
	if err != nil {
		s.cfg.Conns.Fail(attempt, conns.TunnelLost, err)
		return
	}
	record := s.cfg.Conns.Open(ctx, attempt)
	record.End(carry(record.Context(), stream, server.(upstream.Stream), record))
}
