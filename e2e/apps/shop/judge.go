package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	// portJudge is where requests are decided about, by Envoy's external authorization.
	portJudge = ":9000"
	// slowness is longer than any timeout of a provider may be.
	slowness = 6 * time.Second
	// toldHeader is what the judge was told, as JSON; it is on all that it agrees to.
	toldHeader = "X-Told"
)

// judge does what the header x-judge of a request says: agree (which is the default),
// deny, deny-own (an answer of its own), slow, fail.
type judge struct {
	auth.UnimplementedAuthorizationServer
}

func (judge) Check(ctx context.Context, q *auth.CheckRequest) (*auth.CheckResponse, error) {
	http := q.GetAttributes().GetRequest().GetHttp()
	switch http.GetHeaders()["x-judge"] {
	case "deny":
		return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, nil
	case "deny-own":
		return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &auth.CheckResponse_DeniedResponse{
			DeniedResponse: &auth.DeniedHttpResponse{
				Status: &envoy.HttpStatus{Code: envoy.StatusCode_PaymentRequired}, Body: "pay first\n",
				Headers: []*core.HeaderValueOption{header("x-price", "3"), header("content-type", "text/plain")},
			},
		}}, nil
	case "slow":
		select {
		case <-time.After(slowness):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "fail":
		return nil, fmt.Errorf("out of order")
	}
	told, err := protojson.Marshal(q.GetAttributes())
	if err != nil {
		return nil, err
	}
	return &auth.CheckResponse{Status: &status.Status{}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
		Headers:              []*core.HeaderValueOption{header(toldHeader, string(told)), header("x-user", "ann")},
		HeadersToRemove:      []string{"x-secret"},
		ResponseHeadersToAdd: []*core.HeaderValueOption{header("x-judged", "yes")},
	}}}, nil
}

func header(name, value string) *core.HeaderValueOption {
	return &core.HeaderValueOption{Header: &core.HeaderValue{Key: strings.ToLower(name), Value: value}}
}

// serveJudge decides about requests.
func serveJudge(ctx context.Context) error {
	listener, err := net.Listen("tcp", portJudge)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	auth.RegisterAuthorizationServer(server, judge{})
	go server.Serve(listener)
	defer server.Stop()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	return serveHTTP(ctx, env("LISTEN", ":8080"), mux)
}
