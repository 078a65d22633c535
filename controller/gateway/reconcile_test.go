package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	gwapi "sigs.k8s.io/gateway-api/apis/v1"
)

// A Gateway that is made anew, as with its namespace, gets everything anew: the roots as
// well, which are not its own, and are what they were.
func TestAGatewayThatIsMadeAnewGetsEverything(t *testing.T) {
	var applied []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodPatch {
			t.Errorf("%s %s", q.Method, q.URL)
		}
		applied = append(applied, q.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		io.Copy(w, q.Body)
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{
		"/api/v1/namespaces/shop/configmaps/ambit-ca-root", "/api/v1/namespaces/shop/serviceaccounts/waypoint", "/api/v1/namespaces/shop/services/waypoint",
		"/apis/apps/v1/namespaces/shop/deployments/waypoint", "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/waypoint",
	}
	r := New(Config{Client: client})
	r.applied = map[string]string{}
	for _, step := range []struct {
		what, roots string
		change      func(*gwapi.Gateway)
		want        []string
	}{
		{"a Gateway", "a", nil, all},
		{"the same", "a", nil, nil},
		{"another root", "b", nil, all[:1]},
		{"made anew", "b", func(g *gwapi.Gateway) { g.UID = "2" }, all},
	} {
		applied = nil
		if err := r.apply(t.Context(), waypoint(step.change), step.roots); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(applied, step.want) {
			t.Errorf("%s: applied %v, want %v", step.what, applied, step.want)
		}
	}
}
