package ca

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	caapi "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/quota"
)

const (
	// readingPerPod and reading are the requests that are read at a time: a signing
	// request is small, but gRPC would take as much as the server's largest message.
	// A data plane asks for no more than eight at once.
	readingPerPod = 8
	reading       = 32
	// readTimeout for the request itself, of about a KiB.
	readTimeout = 3 * time.Second
)

// Register adds the certificate service to a gRPC server. On the wire it is what
// the generated code makes of it; here the caller is authenticated before his
// request is read, which gRPC's own way of calling does not allow.
func (s *Server) Register(registrar grpc.ServiceRegistrar) {
	generated := caapi.IstioCertificateService_ServiceDesc
	registrar.RegisterService(&grpc.ServiceDesc{
		ServiceName: generated.ServiceName,
		HandlerType: generated.HandlerType,
		Streams:     []grpc.StreamDesc{{StreamName: "CreateCertificate", ServerStreams: true, Handler: s.serve}},
		Metadata:    generated.Metadata,
	}, s)
}

func (s *Server) serve(_ any, stream grpc.ServerStream) error {
	peer, err := s.cfg.Authenticator.Authenticate(stream.Context())
	if err != nil {
		s.unauthenticated(err)
		return err
	}
	request, err := s.read(stream, peer)
	if err != nil {
		return err
	}
	response, err := s.create(stream.Context(), peer, request)
	if err != nil {
		return err
	}
	return stream.SendMsg(response)
}

// reader is a pod as far as reading its requests goes.
type reader struct{ namespace, pod string }

var errBusy = status.Error(codes.ResourceExhausted, "too many requests at once: ask again")

// read the request of a caller who is known. What is read too slowly, or makes
// room for others, ends with the stream.
func (s *Server) read(stream grpc.ServerStream, peer Peer) (*caapi.IstioCertificateRequest, error) {
	ctx, cancel := context.WithTimeout(stream.Context(), readTimeout)
	defer cancel()
	leave, ok := s.reading.Enter(reader{peer.Namespace, peer.PodName}, cancel)
	if !ok {
		s.requests.WithLabelValues(resultBusy).Inc()
		return nil, errBusy
	}
	defer leave()
	request := new(caapi.IstioCertificateRequest)
	received := make(chan error, 1)
	go func() { received <- stream.RecvMsg(request) }()
	select {
	case err := <-received:
		return request, err
	case <-ctx.Done():
		s.requests.WithLabelValues(resultBusy).Inc()
		return nil, errBusy // which ends RecvMsg
	}
}

func newReading() *quota.Door[reader] { return quota.NewDoor[reader](readingPerPod, reading) }
