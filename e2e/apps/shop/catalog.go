package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The calls of the catalog, in plain strings: a question in, an answer out; and a talk,
// in which each line is answered with itself.
const (
	catalogMethod = "/shop.Catalog/Ask"
	talkMethod    = "/shop.Catalog/Talk"
)

var catalogService = grpc.ServiceDesc{
	ServiceName: "shop.Catalog",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Ask",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var question wrapperspb.StringValue
			if err := decode(&question); err != nil {
				return nil, err
			}
			return answer(ctx, question.GetValue()), nil
		},
	}},
	Streams: []grpc.StreamDesc{{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		for {
			var line wrapperspb.StringValue
			if err := stream.RecvMsg(&line); err != nil {
				return err
			}
			if err := stream.SendMsg(&line); err != nil {
				return err
			}
		}
	}}},
}

func answer(ctx context.Context, question string) *wrapperspb.StringValue {
	if question == "whoami" {
		if from, ok := peer.FromContext(ctx); ok {
			return wrapperspb.String(from.Addr.String())
		}
	}
	return wrapperspb.String("apples, pears and quinces")
}

func askCatalog(ctx context.Context, conn grpc.ClientConnInterface, question string) (string, error) {
	var reply wrapperspb.StringValue
	err := conn.Invoke(ctx, catalogMethod, wrapperspb.String(question), &reply)
	return reply.GetValue(), err
}

func serveCatalog(ctx context.Context) error {
	server, err := listenCatalog(env("LISTEN", portCatalog))
	if err != nil {
		return err
	}
	defer server.Stop()
	return serveHealth(ctx)
}

const portCatalog = ":9090"

func listenCatalog(address string) (*grpc.Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	server.RegisterService(&catalogService, struct{}{})
	go server.Serve(listener)
	return server, nil
}

// talk opens a talk, and returns what says a line and waits for its answer.
func talk(ctx context.Context, address string) (say func(string) error, err error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	stream, err := conn.NewStream(ctx, &catalogService.Streams[0], talkMethod)
	if err != nil {
		return nil, err
	}
	return func(text string) error {
		var answer wrapperspb.StringValue
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil && !errors.Is(err, io.EOF) { // what ended it, reading tells
			return err
		}
		if err := stream.RecvMsg(&answer); err != nil {
			return err
		}
		if answer.GetValue() != text {
			return fmt.Errorf("%q was answered with %q", text, answer.GetValue())
		}
		return nil
	}, nil
}

// serveHealth is the kubelet's port of services that do not speak HTTP.
func serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	return serveHTTP(ctx, env("HEALTH", ":8080"), mux)
}
