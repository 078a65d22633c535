// Package grpcechoserver has what the conformance suite takes from the package of
// this name, as far as it has to compile: the client of its gRPC server. The tests
// that call it are of gateways, and would fail: those of meshes have their
// requests made by the application in the pod.
package grpcechoserver

import (
	"context"
	"errors"

	"google.golang.org/grpc"
)

// EchoRequest asks for nothing in particular.
type EchoRequest struct{}

// EchoResponse tells what the server saw.
type EchoResponse struct {
	Assertions *Assertions
	Request    *EchoRequest
}

// GetAssertions of the response; nil if it is.
func (r *EchoResponse) GetAssertions() *Assertions {
	if r == nil {
		return nil
	}
	return r.Assertions
}

// Assertions are about one call.
type Assertions struct {
	FullyQualifiedMethod string
	Headers              []*Header
	Authority            string
	Context              *Context
}

// GetFullyQualifiedMethod of the call.
func (a *Assertions) GetFullyQualifiedMethod() string {
	if a == nil {
		return ""
	}
	return a.FullyQualifiedMethod
}

// GetHeaders of the call.
func (a *Assertions) GetHeaders() []*Header {
	if a == nil {
		return nil
	}
	return a.Headers
}

// GetContext of the server.
func (a *Assertions) GetContext() *Context {
	if a == nil {
		return nil
	}
	return a.Context
}

// Header is one header of the call.
type Header struct{ Key, Value string }

// GetKey is the header's name.
func (h *Header) GetKey() string {
	if h == nil {
		return ""
	}
	return h.Key
}

// GetValue is the header's value.
func (h *Header) GetValue() string {
	if h == nil {
		return ""
	}
	return h.Value
}

// Context is where the server runs.
type Context struct{ Namespace, Pod string }

// GetNamespace of the server.
func (c *Context) GetNamespace() string {
	if c == nil {
		return ""
	}
	return c.Namespace
}

// GetPod of the server.
func (c *Context) GetPod() string {
	if c == nil {
		return ""
	}
	return c.Pod
}

// GrpcEchoClient calls the server.
type GrpcEchoClient interface {
	Echo(ctx context.Context, in *EchoRequest, opts ...grpc.CallOption) (*EchoResponse, error)
	EchoTwo(ctx context.Context, in *EchoRequest, opts ...grpc.CallOption) (*EchoResponse, error)
	EchoThree(ctx context.Context, in *EchoRequest, opts ...grpc.CallOption) (*EchoResponse, error)
}

// NewGrpcEchoClient returns a client that calls nobody.
func NewGrpcEchoClient(grpc.ClientConnInterface) GrpcEchoClient { return nobody{} }

type nobody struct{}

var errNobody = errors.New("the client of the suite's gRPC server is not there")

func (nobody) Echo(context.Context, *EchoRequest, ...grpc.CallOption) (*EchoResponse, error) {
	return nil, errNobody
}

func (nobody) EchoTwo(context.Context, *EchoRequest, ...grpc.CallOption) (*EchoResponse, error) {
	return nil, errNobody
}

func (nobody) EchoThree(context.Context, *EchoRequest, ...grpc.CallOption) (*EchoResponse, error) {
	return nil, errNobody
}
