package ca

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	authenticationv1 "k8s.io/api/authentication/v1"
)

// FuzzBearer: whatever a caller puts into his headers, what is taken for a token
// is one, of a sensible size, and was given exactly once.
func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc", "")
	f.Add("bearer  abc", "Bearer def")
	f.Add("Bearer ", "Basic YTpi")
	f.Add("Bearer\tabc", strings.Repeat("x", maxTokenBytes))
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, values := range [][]string{nil, {one}, {one, two}} {
			token, err := bearer(metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": values}))
			if err != nil {
				continue
			}
			if len(values) != 1 || token == "" || len(token) > maxTokenBytes || !strings.HasSuffix(one, token) {
				t.Fatalf("%q is taken for a token of %q", token, values)
			}
		}
	})
}

// FuzzReadReview: whatever an API server answers, who is believed to call is a
// service account's pod on a node, with all that names it.
func FuzzReadReview(f *testing.F) {
	for _, answer := range []authenticationv1.TokenReviewStatus{tokenOf(tunnel), tokenOf(cartPod), {}} {
		content, err := json.Marshal(answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var answer authenticationv1.TokenReviewStatus
		if json.Unmarshal(content, &answer) != nil {
			return
		}
		peer, err := readReview(answer)
		if err != nil {
			return
		}
		name := "system:serviceaccount:" + peer.Namespace + ":" + peer.ServiceAccount
		if !answer.Authenticated || answer.User.Username != name || strings.Contains(peer.Namespace+peer.ServiceAccount, ":") ||
			peer.Namespace == "" || peer.ServiceAccount == "" || peer.PodName == "" || peer.PodUID == "" || peer.Node == "" {
			t.Fatalf("%s makes %+v", content, peer)
		}
	})
}
