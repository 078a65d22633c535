//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// custom is a policy that has a provider of namespace e2e-judge-providers decide about a path.
func custom(name, path, provider string) string {
	return fmt.Sprintf(`---
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: %s}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: CUSTOM
  provider: {namespace: e2e-judge-providers, timeout: 2s, %s}
  rules: [{to: [{operation: {paths: ["%s"]}}]}]
`, name, provider, path)
}

// A provider decides, ours as well as one that others wrote; without it nothing passes
// but what is meant to.
func TestProvidersDecideAboutRequests(t *testing.T) {
	t.Parallel()
	providers := newPlace(t, "e2e-judge-providers", modeLabel+"=ambient")
	judge := pod(podOptions{name: "judge", node: "n2", role: "judge"})
	providers.apply(judge + service("judge", "judge", "{name: grpc, port: 9000}") +
		pod(podOptions{name: "other", node: "n3", image: "ambit.mesh/peer-extauthz:dev", port: 9000, args: []string{"--allow_service_account=client"}}) +
		service("other", "other", "{name: grpc, port: 9000}"))
	p := waypointed(t, "e2e-judge", "server")
	p.apply(custom("ours", "/echo/ours/*", "service: judge, port: 9000, contextExtensions: {rules: cart}, includePeerCertificate: true") +
		custom("told", "/echo/told/*", "service: judge, port: 9000, requestBody: {maxBytes: 16}") +
		custom("begun", "/echo/begun/*", "service: judge, port: 9000, requestBody: {maxBytes: 16, allowPartial: true}") +
		custom("lenient", "/echo/lenient/*", "service: judge, port: 9000, failOpen: true") +
		custom("theirs", "/echo/theirs/*", "service: other, port: 9000"))
	providers.ready("judge", "other")
	providers.captured("judge", "other")
	for _, name := range []string{"ours", "told", "begun", "lenient", "theirs"} {
		p.inForce("authorizationpolicies.ambit.mesh/" + name)
	}
	const at = "http://server:8080/echo/"
	agreed := get(at+"ours/a?x=1", "X-User", "root", "X-Secret", "s")
	p.answered("the provider is asked", "client", 200, agreed)

	post := func(path, body string) request { return request{Method: "POST", URL: at + path, Body: body} }
	type told struct {
		Source, Destination struct{ Principal, Certificate string }
		ContextExtensions   map[string]string
		Request             struct {
			HTTP struct {
				Method, Path, Host, Body string
				Headers                  map[string]string
			}
		}
	}
	const short, long = `{"order":1}`, "more than sixteen bytes"
	for _, c := range []struct {
		name string
		request
		want int
		body string // told
		more func(answer, told) error
	}{
		{"ours agrees", agreed, 200, "", func(a answer, q told) error {
			got, err := a.echoed()
			switch {
			case err != nil:
				return err
			case len(got.Header.Values("X-User")) != 1 || got.Header.Get("X-User") != "ann" || got.Header.Get("X-Secret") != "":
				return fmt.Errorf("the application got %v", got.Header)
			case a.Header.Get("X-Judged") != "yes":
				return fmt.Errorf("the client got %v", a.Header)
			case q.Request.HTTP.Method != "GET" || q.Request.HTTP.Path != "/echo/ours/a?x=1" || q.Request.HTTP.Host != "server:8080" || q.Request.HTTP.Headers["x-secret"] != "s",
				q.Source.Principal != "spiffe://cluster.local/ns/e2e-judge/sa/client", q.Destination.Principal != "spiffe://cluster.local/ns/e2e-judge/sa/waypoint",
				!strings.HasPrefix(q.Source.Certificate, "-----BEGIN%20CERTIFICATE-----%0A"), q.ContextExtensions["rules"] != "cart":
				return fmt.Errorf("it was told %+v", q)
			}
			return nil
		}},
		{"ours denies", get(at+"ours/a", "X-Judge", "deny"), 403, "", nil},
		{"ours denies by an answer of its own", get(at+"ours/a", "X-Judge", "deny-own"), 402, "", func(a answer, _ told) error {
			if a.Body != "pay first\n" || a.Header.Get("X-Price") != "3" {
				return fmt.Errorf("%v %q", a.Header, a.Body)
			}
			return nil
		}},
		{"ours is slow", get(at+"ours/a", "X-Judge", "slow"), 403, "", func(a answer, _ told) error {
			if a.Took < 2000 || a.Took > 5500 {
				return fmt.Errorf("it took %d ms", a.Took)
			}
			return nil
		}},
		{"ours fails", get(at+"ours/a", "X-Judge", "fail"), 403, "", nil},
		{"a body that is not told", post("ours/a", short), 200, "", nil},
		{"a body", post("told/a", short), 200, short, nil},
		{"too long a body", post("told/a", long), 413, "", nil},
		{"the beginning of a body", post("begun/a", long), 200, long[:16], func(a answer, q told) error {
			if got, err := a.echoed(); err != nil || got.Length != len(long) || q.Request.HTTP.Headers["x-envoy-auth-partial-body"] != "true" {
				return fmt.Errorf("the application got %d bytes, %v; it was told %+v", got.Length, err, q)
			}
			return nil
		}},
		{"a lenient policy, denied", get(at+"lenient/a", "X-Judge", "deny"), 403, "", nil},
		{"a lenient policy, and no answer", get(at+"lenient/a", "X-Judge", "fail"), 200, "", nil},
		{"theirs agrees to the header", get(at+"theirs/a", "x-ext-authz", "allow"), 200, "", func(a answer, _ told) error {
			got, err := a.echoed()
			if err == nil && (got.Header.Get("X-Ext-Authz-Check-Result") != "allowed" || got.Header.Get("X-Ext-Authz-Additional-Header-Override") != "grpc-additional-header-override-value" ||
				!strings.Contains(got.Header.Get("X-Ext-Authz-Check-Received"), "/echo/theirs/a")) {
				err = fmt.Errorf("the application got %v", got.Header)
			}
			return err
		}},
		{"theirs knows the client's identity", get(at + "theirs/a"), 200, "", nil},
		{"theirs denies", get(at+"theirs/a", "x-ext-authz", "deny"), 403, "", func(a answer, _ told) error {
			if !strings.Contains(a.Body, "denied by ext_authz") || a.Header.Get("X-Ext-Authz-Check-Result") != "denied" {
				return fmt.Errorf("%v %q", a.Header, a.Body)
			}
			return nil
		}},
	} {
		a := p.ask("client", c.request)[0]
		if a.Status != c.want {
			t.Errorf("%s: answered with %d, want %d: %s%s", c.name, a.Status, c.want, a.Body, a.Error)
			continue
		}
		var q told
		if got, err := a.echoed(); err == nil && got.Header.Get("X-Told") != "" {
			if err := json.Unmarshal([]byte(got.Header.Get("X-Told")), &q); err != nil {
				t.Errorf("%s: it was told %s: %v", c.name, got.Header.Get("X-Told"), err)
			}
		}
		if q.Request.HTTP.Body != c.body {
			t.Errorf("%s: it was told of the body %q, want %q", c.name, q.Request.HTTP.Body, c.body)
		}
		if c.more != nil {
			if err := c.more(a, q); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}

	providers.gone("judge", "other")
	for _, path := range []string{"ours/a", "told/a", "begun/a", "theirs/a"} {
		if a := p.ask("client", get(at+path, "x-ext-authz", "allow"))[0]; a.Status != 403 {
			t.Errorf("without its provider %s was answered with %d: %s", path, a.Status, a.Body)
		}
	}
	answers := p.ask("client", get(at+"lenient/a"), get(at+"free"))
	if answers[0].Status != 200 || answers[1].Status != 200 {
		t.Errorf("without its provider, what is lenient was answered with %d, what nobody is asked about with %d", answers[0].Status, answers[1].Status)
	}
	providers.apply(judge)
	p.answered("with the provider back", "client", 200, agreed)
}
