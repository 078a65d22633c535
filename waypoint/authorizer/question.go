package authorizer

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Peer is one end of a connection.
type Peer struct {
	Address  netip.AddrPort
	Identity spiffe.ID
	// Certificate by which it proved that; nil if the provider is not told of it.
	Certificate *x509.Certificate
}

// Body is what a provider is told of a request's body.
type Body struct {
	Bytes []byte
	// Partial: there is more of it.
	Partial bool
}

// partialHeader says to the provider whether there is more: as Envoy says it.
const partialHeader = "x-envoy-auth-partial-body"

// Question about a request, as it is seen by policies. Its size is that of its body, -1
// if nobody knows; nothing is told of a body that is nil. Extensions are the policy's.
func Question(r *request.Request, version int, size int64, body *Body, client, server Peer, extensions map[string]string, began time.Time) *auth.CheckRequest {
	headers := make(map[string]string, len(r.Fields)+4)
	for _, f := range r.Fields {
		value := strings.ToValidUTF8(f.Value, "\uFFFD")
		if before, several := headers[f.Name]; several {
			value = before + "," + value
		}
		headers[f.Name] = value
	}
	headers[":method"], headers[":authority"], headers[":path"], headers[":scheme"] = r.Method, r.Authority(), r.Target(), "http"
	protocol := "HTTP/1.1"
	if version == 2 {
		protocol = "HTTP/2"
	}
	http := &auth.AttributeContext_HttpRequest{
		Id: headers["x-request-id"], Method: r.Method, Headers: headers, Path: r.Target(), Host: r.Authority(), Scheme: "http", Size: size, Protocol: protocol,
	}
	if body != nil {
		headers[partialHeader] = strconv.FormatBool(body.Partial)
		if utf8.Valid(body.Bytes) { // as a string of the protocol's has to be
			http.Body = string(body.Bytes)
		} else {
			http.RawBody = body.Bytes
		}
	}
	return &auth.CheckRequest{Attributes: &auth.AttributeContext{
		Source: peer(client), Destination: peer(server), ContextExtensions: extensions,
		Request: &auth.AttributeContext_Request{Time: timestamppb.New(began), Http: http},
	}}
}

func peer(p Peer) *auth.AttributeContext_Peer {
	out := &auth.AttributeContext_Peer{}
	if p.Address.IsValid() {
		out.Address = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: p.Address.Addr().String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(p.Address.Port())},
		}}}
	}
	if !p.Identity.IsZero() {
		out.Principal = p.Identity.String()
	}
	if p.Certificate != nil {
		out.Certificate = percent.Replace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate.Raw})))
	}
	return out
}

// percent encodes what of PEM no URL has as it is: the protocol wants it so.
var percent = strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D")
