package certs

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// FetchFrom returns a Config.Fetch that asks a CA over the wire. The caller is
// authenticated by the connection's own credentials; ttl is the life asked for.
func FetchFrom(conn grpc.ClientConnInterface, ttl time.Duration) func(context.Context, spiffe.ID, []byte) ([]string, error) {
	client := ca.NewIstioCertificateServiceClient(conn)
	return func(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error) {
		response, err := client.CreateCertificate(ctx, &ca.IstioCertificateRequest{
			Csr:              string(csrPEM),
			ValidityDuration: int64(ttl.Seconds()),
			Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
				"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
			}},
		})
		return response.GetCertChain(), err
	}
}
