package ca

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServer knows tokens as the API server does.
type apiServer struct {
	tokens map[string]authenticationv1.TokenReviewStatus
	asked  []authenticationv1.TokenReviewSpec
	err    error
}

func (s *apiServer) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	s.asked = append(s.asked, review.Spec)
	if s.err != nil {
		return nil, s.err
	}
	answer := review.DeepCopy()
	answer.Status = s.tokens[review.Spec.Token]
	return answer, nil
}

// tokenOf is what the API server says of a good token of a peer.
func tokenOf(peer Peer) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{Audience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:" + peer.Namespace + ":" + peer.ServiceAccount,
			Extra: map[string]authenticationv1.ExtraValue{
				extraPodName: {peer.PodName}, extraPodUID: {peer.PodUID}, extraNodeName: {peer.Node},
			},
		},
	}
}

var tunnel = Peer{Namespace: system, ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "uid-z1", Node: "n1"}

func called(headers ...string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": headers})
}

func TestAuthenticateKnowsThePod(t *testing.T) {
	server := &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{"good": tokenOf(tunnel)}}
	peer, err := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet()}).Authenticate(called("Bearer good"))
	if err != nil || peer != tunnel {
		t.Errorf("%+v, %v", peer, err)
	}
	if len(server.asked) != 1 || len(server.asked[0].Audiences) != 1 || server.asked[0].Audiences[0] != "ambit-ca" {
		t.Errorf("asked %+v", server.asked)
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	altered := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		answer := tokenOf(tunnel)
		answer.User.Extra = maps.Clone(answer.User.Extra)
		change(&answer)
		return answer
	}
	user := func(name string) authenticationv1.TokenReviewStatus {
		return altered(func(a *authenticationv1.TokenReviewStatus) { a.User.Username = name })
	}
	for title, answer := range map[string]authenticationv1.TokenReviewStatus{
		"a token nobody knows":      {},
		"another audience":          altered(func(a *authenticationv1.TokenReviewStatus) { a.Audiences = []string{"kubernetes.default.svc"} }),
		"a server without audience": altered(func(a *authenticationv1.TokenReviewStatus) { a.Audiences = nil }),
		"not authenticated":         altered(func(a *authenticationv1.TokenReviewStatus) { a.Authenticated = false }),
		"a user":                    user("admin"),
		"a node":                    user("system:node:n1"),
		"no account":                user("system:serviceaccount:ambit-system:"),
		"too many parts":            user("system:serviceaccount:ambit-system:ztunnel:x"),
		"a legacy token, no pod":    altered(func(a *authenticationv1.TokenReviewStatus) { a.User.Extra = nil }),
		"no node":                   altered(func(a *authenticationv1.TokenReviewStatus) { delete(a.User.Extra, extraNodeName) }),
		"two nodes":                 altered(func(a *authenticationv1.TokenReviewStatus) { a.User.Extra[extraNodeName] = []string{"n1", "n2"} }),
		"an empty pod":              altered(func(a *authenticationv1.TokenReviewStatus) { a.User.Extra[extraPodUID] = []string{""} }),
	} {
		server := &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{"token": answer}}
		peer, err := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet()}).Authenticate(called("Bearer token"))
		if peer != (Peer{}) || status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %+v, %v", title, peer, err)
		}
	}
	for title, headers := range map[string][]string{
		"no header": nil, "two headers": {"Bearer good", "Bearer good"}, "basic": {"Basic good"}, "no token": {"Bearer "},
		"only a token": {"good"}, "a huge token": {"Bearer " + strings.Repeat("a", maxTokenBytes+1)},
	} {
		server := &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{"good": tokenOf(tunnel)}}
		_, err := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet()}).Authenticate(called(headers...))
		if status.Code(err) != codes.Unauthenticated || len(server.asked) != 0 {
			t.Errorf("%s: %v, asked %d times", title, err, len(server.asked))
		}
	}
}

func TestAuthenticateWhenTheAPIServerIsAway(t *testing.T) {
	server := &apiServer{err: errors.New("connection refused")}
	_, err := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet()}).Authenticate(called("Bearer good"))
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "refused") {
		t.Errorf("%v, want Unavailable without details", err)
	}
}

func TestReviewsAreRememberedForAShortTime(t *testing.T) {
	c := &clock{now: start}
	server := &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{"good": tokenOf(tunnel)}}
	a := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet(), Now: c.Now})
	ask := func(token string) error {
		_, err := a.Authenticate(called("Bearer " + token))
		return err
	}
	for range 3 {
		if err := ask("good"); err != nil {
			t.Fatal(err)
		}
	}
	if len(server.asked) != 1 {
		t.Errorf("asked %d times for one token", len(server.asked))
	}
	delete(server.tokens, "good")
	c.now = c.now.Add(reviewLifetime)
	if status.Code(ask("good")) != codes.Unauthenticated {
		t.Error("a token that was withdrawn is still good")
	}
	// A refusal is not remembered: a token that becomes good is good.
	server.tokens["good"] = tokenOf(tunnel)
	if err := ask("good"); err != nil {
		t.Error(err)
	}
}

func TestRememberedReviewsAreBounded(t *testing.T) {
	server := &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{}}
	a := NewAuthenticator(AuthenticatorConfig{Reviews: server, Logger: quiet()})
	for i := range maxReviews + 100 {
		token := fmt.Sprint(i)
		server.tokens[token] = tokenOf(tunnel)
		if _, err := a.Authenticate(called("Bearer " + token)); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.cache) > maxReviews {
		t.Errorf("%d reviews are remembered", len(a.cache))
	}
}

// slowServer answers no question about a token but one.
type slowServer struct{ *apiServer }

func (s slowServer) Create(ctx context.Context, review *authenticationv1.TokenReview, o metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	if review.Spec.Token != "good" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.apiServer.Create(ctx, review, o)
}

// TestFloodOfTokensLeavesRoom: what some addresses have reviewed does not keep
// another one from being authenticated, and what they ask at once is bounded.
func TestFloodOfTokensLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAuthenticator(AuthenticatorConfig{
			Reviews: slowServer{&apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{"good": tokenOf(tunnel)}}}, Logger: quiet(),
		})
		call := func(from, token string) error {
			ctx := peer.NewContext(called("Bearer "+token), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from + ":1"))})
			_, err := a.Authenticate(ctx)
			return err
		}
		var flood sync.WaitGroup
		for i := range 1000 {
			flood.Go(func() { call(fmt.Sprintf("10.0.0.%d", i%10), fmt.Sprint("bad", i)) })
		}
		synctest.Wait()
		if n := a.reviews.Inside(); n > 64 {
			t.Errorf("%d questions at once", n)
		}
		if err := call("10.0.0.77", "good"); err != nil {
			t.Errorf("in the middle of a flood: %v", err)
		}
		flood.Wait()
	})
}
