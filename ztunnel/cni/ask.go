package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// maxAnswer is far above any answer of ztunnel.
const maxAnswer = 64 << 10

// reply is ztunnel's answer: no problem means yes.
type reply struct {
	problem *cniproto.Problem
}

// ask puts one question to ztunnel. An error means that it did not answer; an
// answer that makes no sense is a problem.
func ask(socket, path string, request any, timeout time.Duration) (reply, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return reply{}, fmt.Errorf("encode request: %w", err)
	}
	client := http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
	}
	response, err := client.Post("http://ztunnel"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return reply{}, fmt.Errorf("read answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		problem := &cniproto.Problem{}
		if err := json.Unmarshal(content, problem); err != nil || problem.Code == "" {
			problem = &cniproto.Problem{Code: "BadAnswer", Message: fmt.Sprintf("ztunnel answered %s: %q", response.Status, content)}
		}
		return reply{problem: problem}, nil
	}
	if !json.Valid(content) {
		return reply{problem: &cniproto.Problem{Code: "BadAnswer", Message: fmt.Sprintf("ztunnel's answer is not JSON: %q", content)}}, nil
	}
	return reply{}, nil
}
