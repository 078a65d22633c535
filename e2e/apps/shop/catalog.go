package main

import (
	"context"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// catalogMethod is the one call of the catalog: a question in, an answer out,
// both plain strings.
const catalogMethod = "/shop.Catalog/Ask"

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
	listener, err := net.Listen("tcp", env("LISTEN", ":9090"))
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	server.RegisterService(&catalogService, struct{}{})
	go server.Serve(listener)
	defer server.Stop()
	return serveHealth(ctx)
}

// serveHealth is the kubelet's port of services that do not speak HTTP.
func serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	return serveHTTP(ctx, env("HEALTH", ":8080"), mux)
}
