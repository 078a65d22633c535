//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// routing is a namespace behind a waypoint, with two endpoints, `one` and `two`, that answer
// requests with themselves, a Service of each, one for each case, and another namespace
// whose pods are clients alone.
type routing struct {
	*place
	client, stranger *asker
	// elsewhere is the other namespace.
	elsewhere *place
}

// routeCase is a Service of its name, for which endpoint `one` stands, with routes.
type routeCase struct {
	name string
	// ports of the Service; none: {name: web, port: 8080}, which says nothing of what it speaks.
	ports []string
	// rules of an HTTPRoute of the Service's name.
	rules string
	// more manifests.
	more  string
	check func(t *testing.T, r *routing)
}

func url(service, path string) string { return "http://" + service + ":8080" + path }

func httpRoute(name, service, rules string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s}
spec:
  parentRefs: [{group: "", kind: Service, name: %s}]
  rules:
%s
`, name, service, strings.Trim(rules, "\n"))
}

func grpcRoute(name, service, rules string) string {
	return strings.Replace(httpRoute(name, service, rules), "HTTPRoute", "GRPCRoute", 1)
}

// tlsRoute is one of Service names, to a Service of its own name.
func tlsRoute(name string, hostnames ...string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: %[1]s}
spec:
  parentRefs: [{group: "", kind: Service, name: names}]
  hostnames: ["%[2]s"]
  rules: [{backendRefs: [{name: %[1]s, port: 443}]}]
`, name, strings.Join(hostnames, `", "`))
}

const anyPort = "{name: web, port: 8080}"

// What the Gateway API promises of routes, at Services, on the wire.
func TestRoutesOfServices(t *testing.T) {
	t.Parallel()
	r := &routing{place: newPlace(t, "e2e-routes", modeLabel+"=ambient"), elsewhere: newPlace(t, "e2e-routes-elsewhere", modeLabel+"=ambient")}
	manifests := pod(podOptions{name: "client", node: "n1", role: "echo"}) + pod(podOptions{name: "one", node: "n2", role: "echo", labels: []string{"group: both"}}) +
		pod(podOptions{name: "two", node: "n3", role: "echo", labels: []string{"group: both"}}) + pod(podOptions{name: "broken-off", node: "n3", role: "wires"}) +
		pod(podOptions{name: "left", node: "n2", role: "issuer"}) + pod(podOptions{name: "right", node: "n3", role: "issuer"}) +
		service("left", "left", "{name: tls, port: 443, targetPort: 8443}") + service("right", "right", "{name: tls, port: 443, targetPort: 8443}") +
		service("one", "one", anyPort, "{name: calls, port: 9090, appProtocol: kubernetes.io/h2c}", "{name: greeting, port: 7000}") +
		service("two", "two", anyPort, "{name: calls, port: 9090}", "{name: greeting, port: 7000}") +
		service("nobody", "nobody", anyPort) + service("closed", "one", "{name: web, port: 8080, targetPort: 7999}") +
		service("second", "one", "{name: web, port: 8080, appProtocol: kubernetes.io/h2c}") + service("first", "one", "{name: http, port: 8080}") +
		service("secret", "one", "{name: https, port: 443}")
	for _, c := range routeCases {
		ports := c.ports
		if len(ports) == 0 {
			ports = []string{anyPort}
		}
		manifests += service(c.name, "one", ports...)
	}
	r.apply(manifests)
	r.elsewhere.apply(pod(podOptions{name: "client", node: "n3", role: "echo"}) + pod(podOptions{name: "far", node: "n1", role: "echo"}) + service("far", "far", anyPort))
	r.ready("client", "one", "two", "broken-off", "left", "right")
	r.elsewhere.ready("client", "far")
	r.captured("client", "one", "two", "broken-off", "left", "right")
	r.elsewhere.captured("client", "far")
	r.ambit("waypoint", "apply", "-n", r.name, "--enroll-namespace", "--wait=90s")
	var routes strings.Builder
	for _, c := range routeCases {
		if c.rules != "" {
			routes.WriteString(httpRoute(c.name, c.name, c.rules))
		}
		routes.WriteString(c.more)
	}
	r.apply(routes.String())
	r.client, r.stranger = r.asker("client"), r.elsewhere.asker("client")
	r.in("wait", "--for=condition=ambit.mesh/Bound", "services", "--field-selector=metadata.name!=waypoint", "--timeout=90s")
	// All at once: the cases share nothing but the endpoints.
	t.Run("cases", func(t *testing.T) {
		for _, c := range routeCases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.check(t, r)
			})
		}
	})
}

// of is the case's place, with its own words for failures.
func (r *routing) of(t *testing.T) *place { return &place{t, r.bed, r.name} }

// remembered are the requests that an endpoint got with a key.
func (r *routing) remembered(t *testing.T, pod, key string) (all []seen) {
	t.Helper()
	// Another port of the pod than any Service's: no waypoint stands before it.
	answer, err := r.client.ask(getting("http://" + r.of(t).ip(pod) + ":7010/?key=" + key))
	if err == nil {
		err = json.Unmarshal([]byte(answer.Body), &all)
	}
	if err != nil {
		t.Fatalf("what %s remembers of %s: %v %+v", pod, key, err, answer)
	}
	return all
}

// to is a rule that sends requests with this match to a Service.
func to(service, match string) string {
	return fmt.Sprintf("  - {matches: [%s], backendRefs: [{name: %s, port: 8080}]}\n", match, service)
}

// filtered is a rule for paths below one, with filters, to Service one.
func filtered(path string, filters ...string) string {
	return fmt.Sprintf("  - {matches: [{path: {value: %s}}], filters: [%s], backendRefs: [{name: one, port: 8080}]}\n", path, strings.Join(filters, ", "))
}

// redirected is a rule for paths below one that redirects.
func redirected(path, redirect string) string {
	return fmt.Sprintf("  - {matches: [{path: {value: %s}}], filters: [{type: RequestRedirect, requestRedirect: {%s}}]}\n", path, redirect)
}

var routeCases = []routeCase{
	{
		name: "paths",
		rules: to("one", "{path: {value: /a}}") + to("two", "{path: {type: Exact, value: /a/b}}") + to("two", "{path: {value: /a/b/c/}}") +
			to("two", `{path: {type: RegularExpression, value: "/r[0-9]+"}}`),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("paths", "/a")), by("one")), on(getting(url("paths", "/a/b/c/d")), by("two")), on(getting(url("paths", "/a/b")), by("two")),
				on(getting(url("paths", "/a/b/")), by("one")), on(getting(url("paths", "/a/b/c")), by("two")), on(getting(url("paths", "/a/x?y=/a/b")), by("one")),
				on(getting(url("paths", "/r12")), by("two")), on(getting(url("paths", "/r12x")), status(404)), on(getting(url("paths", "/ab")), status(404)), on(getting(url("paths", "/")), status(404)))
		},
	},
	{
		name: "methods",
		rules: to("one", "{method: GET}") + to("two", "{method: POST}") + to("two", "{path: {value: /p}, method: GET}") +
			to("one", "{path: {value: /q}, method: PATCH}, {path: {value: /q}, method: DELETE, headers: [{name: X-V, value: three}]}") + to("two", "{headers: [{name: X-V, value: four}]}"),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("methods", "/")), by("one")), on(ask("POST", url("methods", "/")), by("two")), on(getting(url("methods", "/p")), by("two")),
				on(ask("PATCH", url("methods", "/q")), by("one")), on(ask("DELETE", url("methods", "/q")), status(404)), on(ask("DELETE", url("methods", "/q"), "X-V: three"), by("one")),
				on(ask("PUT", url("methods", "/"), "X-V: four"), by("two")),
				// A method counts for more than a header.
				on(getting(url("methods", "/"), "X-V: four"), by("one")))
		},
	},
	{
		name: "headers",
		rules: to("one", "{headers: [{name: X-V, value: one}]}") + to("two", "{headers: [{name: x-v, value: one}, {name: X-W, value: w}]}") +
			to("two", `{headers: [{name: X-N, type: RegularExpression, value: "[0-9]+"}]}`) + to("two", "{headers: [{name: Host, value: other.example}]}"),
		check: func(t *testing.T, r *routing) {
			u := url("headers", "/")
			r.client.steps(t, on(getting(u, "X-V: one"), by("one")), on(getting(u, "x-v: one", "X-W: w"), by("two")), on(getting(u, "X-V: One"), status(404)), on(getting(u, "X-N: 12"), by("two")),
				on(getting(u, "X-N: 12a"), status(404)), on(getting(u, "Host: other.example"), by("two")), on(getting(u), status(404)))
		},
	},
	{
		name: "queries",
		rules: to("one", "{queryParams: [{name: a, value: one}]}") + to("two", "{queryParams: [{name: a, value: one}, {name: b, value: two}]}") +
			to("two", `{queryParams: [{name: num, type: RegularExpression, value: "[0-9]+"}]}`) + to("two", "{path: {value: /p}, queryParams: [{name: a, value: one}]}"),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("queries", "/?a=one")), by("one")), on(getting(url("queries", "/?b=two&a=one")), by("two")), on(getting(url("queries", "/?a=%6fne")), by("one")),
				on(getting(url("queries", "/?A=one")), status(404)), on(getting(url("queries", "/?num=7")), by("two")), on(getting(url("queries", "/?num=x")), status(404)), on(getting(url("queries", "/p?a=one")), by("two")))
		},
	},
	{
		// Rules of several routes are one table; of equal ones the older route's goes first,
		// then the first by name.
		name: "several",
		more: httpRoute("several-z", "several", to("one", "{path: {value: /}}")+to("one", "{path: {value: /deep/er}}")) + httpRoute("several-y", "several", to("two", "{path: {value: /deep}}")),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("several", "/deep")), by("two")), on(getting(url("several", "/deep/er")), by("one")), on(getting(url("several", "/")), by("one")))
			p := r.of(t)
			time.Sleep(1100 * time.Millisecond) // an age is in seconds
			p.apply(httpRoute("several-a", "several", to("two", "{path: {value: /}}")+to("two", "{path: {value: /new}}")))
			r.client.steps(t, on(getting(url("several", "/new")), by("two")), on(getting(url("several", "/")), by("one")))
			p.in("delete", "httproutes.gateway.networking.k8s.io", "several-z")
			r.client.steps(t, on(getting(url("several", "/")), by("two")))
		},
	},
	{
		name: "modifiers",
		rules: filtered("/request", "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Add, value: a}], remove: [X-Gone]}}") +
			filtered("/response", "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Add, value: a}], remove: [X-From-Endpoint]}}") + `
  - matches: [{path: {value: /backend}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: rule}]}}]
    backendRefs:
    - name: one
      port: 8080
      weight: 0
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: one}]}}]
    - name: two
      port: 8080
      filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: two}]}}
      - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-By, value: two}]}}
`,
		check: func(t *testing.T, r *routing) {
			r.client.steps(t,
				on(getting(url("modifiers", "/request"), "X-Set: x", "X-Set: y", "X-Add: x", "X-Gone: x"), got("X-Set", "s"), got("X-Add", "x", "a"), got("X-Gone"), bears("X-From-Endpoint", "yes")),
				on(getting(url("modifiers", "/request")), got("X-Set", "s"), got("X-Add", "a")),
				on(getting(url("modifiers", "/response"), "X-Set: x"), got("X-Set", "x"), bears("X-Set", "s"), bears("X-Add", "a"), bears("X-From-Endpoint")),
				on(getting(url("modifiers", "/backend")), by("two"), got("X-Add", "rule", "two"), bears("X-By", "two")))
		},
	},
	{
		name: "redirects",
		rules: redirected("/host", "hostname: other.example") + redirected("/full", "path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301") +
			redirected("/prefix", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}") + redirected("/port", "port: 8443") +
			redirected("/scheme", "scheme: https") + redirected("/both", "scheme: https, port: 8443, hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}") +
			redirected("/usual", "port: 80") + redirected("/303", "statusCode: 303") + redirected("/307", "statusCode: 307") + redirected("/308", "statusCode: 308"),
		check: func(t *testing.T, r *routing) {
			u := func(path string) question { return getting(url("redirects", path)) }
			r.client.steps(t,
				on(u("/host/a?b=c"), redirects(302, "http://other.example:8080/host/a?b=c")), on(u("/full/a?b"), redirects(301, "http://redirects:8080/new?b")),
				on(u("/prefix/a"), redirects(302, "http://redirects:8080/new/a")), on(u("/prefix"), redirects(302, "http://redirects:8080/new")), on(u("/port"), redirects(302, "http://redirects:8443/port")),
				on(u("/scheme"), redirects(302, "https://redirects/scheme")), on(u("/both/x"), redirects(302, "https://other.example:8443/x")), on(u("/usual"), redirects(302, "http://redirects/usual")),
				on(u("/303"), redirects(303, "http://redirects:8080/303")), on(ask("POST", url("redirects", "/307")), redirects(307, "http://redirects:8080/307")), on(u("/308"), redirects(308, "http://redirects:8080/308")))
		},
	},
	{
		name: "rewrites",
		rules: filtered("/host", "{type: URLRewrite, urlRewrite: {hostname: other.example}}") + filtered("/full", "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}") +
			filtered("/prefix", "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}") +
			filtered("/strip", `{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: ""}}}`,
				"{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}]}}") + `
  - matches: [{path: {value: /backend}}]
    backendRefs: [{name: two, port: 8080, filters: [{type: URLRewrite, urlRewrite: {hostname: two.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /two}}}]}]
`,
		check: func(t *testing.T, r *routing) {
			u := func(path string) question { return getting(url("rewrites", path)) }
			r.client.steps(t, on(u("/host/a?b"), asked("other.example", "/host/a?b")), on(u("/full/a?b"), asked("rewrites:8080", "/new?b")), on(u("/prefix/a?b"), asked("rewrites:8080", "/new/a?b")),
				on(u("/prefix"), asked("rewrites:8080", "/new")), on(u("/strip/a"), asked("other.example", "/a"), got("X-Set", "s")), on(u("/strip"), asked("other.example", "/")),
				on(u("/backend/a"), by("two"), asked("two.example", "/two/a")))
		},
	},
	{
		name: "timeouts",
		rules: `
  - {matches: [{path: {value: /request}}], timeouts: {request: 500ms}, backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /backend}}], timeouts: {backendRequest: 500ms}, backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /none}}], timeouts: {request: 0s, backendRequest: 0s}, backendRefs: [{name: one, port: 8080}]}
`,
		check: func(t *testing.T, r *routing) {
			for _, path := range []string{"/request", "/backend"} {
				r.client.steps(t, on(getting(url("timeouts", path)), by("one")), on(getting(url("timeouts", path+"?delay=4s")), status(504), within(3*time.Second)))
			}
			r.client.steps(t, on(getting(url("timeouts", "/none?delay=1s")), by("one")))
		},
	},
	{
		name: "retries",
		rules: `
  - {matches: [{path: {value: /codes}}], retry: {codes: [500, 503], attempts: 3, backoff: 10ms}, backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /late}}], retry: {attempts: 1, backoff: 10ms}, timeouts: {backendRequest: 1s}, backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /within}}], retry: {codes: [500], attempts: 20, backoff: 200ms}, timeouts: {request: 1s}, backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /none}}], retry: {codes: [500], attempts: 0}, backendRefs: [{name: one, port: 8080}]}
`,
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("retries", "/codes")), by("one")), on(getting(url("retries", "/none")), by("one"))) // in force
			for _, c := range []struct {
				method, name, path string
				status, asked      int
			}{
				{"GET", "three", "/codes?fails=3&status=500", 200, 4}, {"POST", "three-post", "/codes?fails=3&status=503", 200, 4}, {"GET", "four", "/codes?fails=4&status=500", 500, 4},
				{"GET", "other", "/codes?fails=1&status=502", 502, 1}, {"GET", "late", "/late?fails=1&delay=3s", 200, 2}, {"POST", "late-post", "/late?fails=1&delay=3s", 504, 1},
				{"GET", "dropped", "/late?fails=1&drop=1", 200, 2}, {"POST", "dropped-post", "/late?fails=1&drop=1", 503, 1},
				{"GET", "none", "/none?fails=1&status=500", 500, 1},
			} {
				answer, err := r.client.ask(ask(c.method, url("retries", c.path+"&key="+c.name)))
				if n := len(r.remembered(t, "one", c.name)); err != nil || answer.Status != c.status || n != c.asked {
					t.Errorf("%s %s: %d %v after %d times, want %d after %d", c.method, c.path, answer.Status, err, n, c.status, c.asked)
				}
			}
			// The time of the whole ends it.
			r.client.steps(t, on(getting(url("retries", "/within?status=500")), status(504), within(3*time.Second)))
		},
	},
	{
		// Of two endpoints one is no good: it refuses connections, or resets them before it has
		// answered. What may be asked again is answered by the other, and soon nobody is sent there.
		name: "healthy",
		rules: `
  - {matches: [{path: {value: /refusing}}], backendRefs: [{name: refusing, port: 8080}]}
  - {matches: [{path: {value: /resetting/again}}], retry: {attempts: 1, backoff: 10ms}, backendRefs: [{name: resetting, port: 8080}]}
  - {matches: [{path: {value: /resetting/once}}], backendRefs: [{name: resetting, port: 8080}]}
`,
		more: withoutSelector("refusing") + withoutSelector("resetting"),
		check: func(t *testing.T, r *routing) {
			const n = 60
			p := r.of(t)
			// The good ones last: where these answer, the others are known.
			p.apply(p.endpoint("refusing", "two", 7999) + p.endpoint("resetting", "broken-off", 7003) + p.endpoint("refusing", "one", 8080) + p.endpoint("resetting", "one", 8080))
			for _, path := range []string{"/refusing", "/resetting/again"} {
				r.client.steps(t, on(getting(url("healthy", path)), by("one")))
				for _, answer := range r.client.many(n, getting(url("healthy", path))) {
					if err := by("one")(answer); err != nil {
						t.Fatalf("%s: %v: %+v", path, err, answer)
					}
				}
			}
			// Without another attempt, and where one might do what was asked for twice, a reset would show: who resets has the fewest
			// requests, and would get the next.
			for _, q := range []question{getting(url("healthy", "/resetting/once")), ask("POST", url("healthy", "/resetting/again"))} {
				for _, answer := range r.client.many(n, q) {
					if err := by("one")(answer); err != nil {
						t.Fatalf("%s: %v: %+v", q, err, answer)
					}
				}
			}
		},
	},
	{
		// A session stays at the endpoint that began it, by what the client got from there.
		name: "sessions",
		rules: `
  - {matches: [{path: {value: /cookie}}], sessionPersistence: {cookie: {name: basket, path: /cookie}}, backendRefs: [{name: both, port: 8080}]}
  - {matches: [{path: {value: /permanent}}], sessionPersistence: {absoluteTimeout: 3s, cookie: {name: basket, lifetimeType: Permanent}}, backendRefs: [{name: both, port: 8080}]}
  - {matches: [{path: {value: /header}}], sessionPersistence: {type: Header, header: {name: X-Basket}, absoluteTimeout: 3s}, backendRefs: [{name: both, port: 8080}]}
  - {matches: [{path: {value: /split}}], sessionPersistence: {cookie: {}}, backendRefs: [{name: one, port: 8080}, {name: two, port: 8080}]}
`,
		more:  strings.Replace(service("both", "one", anyPort), "app: one", "group: both", 1),
		check: checkSessions,
	},
	{
		name: "mirrors",
		rules: filtered("/one", "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 8080}}}") +
			filtered("/several", "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 8080}}}", "{type: RequestMirror, requestMirror: {backendRef: {name: far, namespace: e2e-routes-elsewhere, port: 8080}}}") +
			filtered("/none", "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 8080}, percent: 0}}") +
			filtered("/some", "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 8080}, percent: 20}}") +
			filtered("/third", "{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 8080}, fraction: {numerator: 1, denominator: 3}}}") +
			filtered("/missing", "{type: RequestMirror, requestMirror: {backendRef: {name: not-there, port: 8080}}}") +
			filtered("/closed", "{type: RequestMirror, requestMirror: {backendRef: {name: closed, port: 8080}}}"),
		check: func(t *testing.T, r *routing) {
			p := r.of(t)
			far := func(key string) (all []seen) {
				answer, err := r.client.ask(getting("http://" + r.elsewhere.ip("far") + ":7010/?key=" + key))
				if err == nil {
					err = json.Unmarshal([]byte(answer.Body), &all)
				}
				if err != nil {
					t.Fatal(err)
				}
				return all
			}
			for _, path := range []string{"/one", "/several", "/none", "/some", "/third", "/missing", "/closed"} {
				r.client.steps(t, on(getting(url("mirrors", path)), by("one")))
			}
			q := ask("POST", url("mirrors", "/one?key=mirror-one"))
			q.Body = "whole"
			if answer, err := r.client.ask(q); err != nil || by("one")(answer) != nil {
				t.Errorf("%v %+v", err, answer)
			}
			p.within(settled, "a copy", func() error {
				all := r.remembered(t, "two", "mirror-one")
				return that(len(all) == 1 && all[0].Method == "POST" && all[0].Body == "whole" && all[0].URI == "/one?key=mirror-one", "two got %+v", all)
			})
			r.client.steps(t, on(getting(url("mirrors", "/several?key=mirror-several")), by("one")))
			p.within(settled, "two copies", func() error {
				return that(len(r.remembered(t, "two", "mirror-several")) == 1 && len(far("mirror-several")) == 1, "not one each")
			})
			const n = 400
			for path, want := range map[string]float64{"/none": 0, "/some": 0.2, "/third": 1. / 3} {
				key := "mirror" + strings.ReplaceAll(path, "/", "-")
				for _, answer := range r.client.many(n, getting(url("mirrors", path+"?key="+key))) {
					if err := by("one")(answer); err != nil {
						t.Fatalf("%s: %v %+v", path, err, answer)
					}
				}
				time.Sleep(time.Second) // the last copies
				if err := share(len(r.remembered(t, "two", key)), n, want); err != nil {
					t.Errorf("%s: mirrored %v", path, err)
				}
			}
		},
	},
	{
		name: "origins",
		rules: filtered("/some", `{type: CORS, cors: {allowOrigins: ["https://shop.example", "https://*.bank.example"], allowMethods: [GET, PUT], allowHeaders: [x-a, x-b], exposeHeaders: [x-c], allowCredentials: true, maxAge: 60}}`) +
			filtered("/all", `{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"]}}`) +
			filtered("/credentials", `{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], allowCredentials: true}}`),
		check: func(t *testing.T, r *routing) {
			preflight := func(path, origin string) question {
				return ask("OPTIONS", url("origins", path), "Origin: "+origin, "Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: x-z")
			}
			allow := "Access-Control-Allow-"
			for _, origin := range []string{"https://shop.example", "https://a.b.bank.example"} {
				r.client.steps(t,
					on(preflight("/some", origin), status(200), bears(allow+"Origin", origin), bears(allow+"Methods", "GET, PUT"), bears(allow+"Headers", "x-a, x-b"), bears(allow+"Credentials", "true"),
						bears("Access-Control-Max-Age", "60"), bears("Access-Control-Expose-Headers", "x-c"), bears("X-From-Endpoint")),
					on(getting(url("origins", "/some"), "Origin: "+origin), by("one"), bears(allow+"Origin", origin), bears(allow+"Credentials", "true"), bears("Access-Control-Expose-Headers", "x-c")))
			}
			for _, origin := range []string{"https://evil.example", "http://shop.example", "https://bank.example", "https://shop.example:8443"} {
				r.client.steps(t, on(preflight("/some", origin), status(200), bears(allow+"Origin"), bears(allow+"Methods")), on(getting(url("origins", "/some"), "Origin: "+origin), by("one"), bears(allow+"Origin")))
			}
			r.client.steps(t, on(preflight("/all", "https://x"), bears(allow+"Origin", "*"), bears(allow+"Methods", "*"), bears(allow+"Headers", "*"), bears(allow+"Credentials"), bears("Access-Control-Max-Age", "5")),
				on(preflight("/credentials", "https://x"), bears(allow+"Origin", "https://x"), bears(allow+"Methods", "PUT"), bears(allow+"Headers", "x-z"), bears(allow+"Credentials", "true")),
				on(ask("OPTIONS", url("origins", "/some")), by("one"))) // no preflight
		},
	},
	{
		name: "protocols",
		rules: to("second", "{path: {value: /second}}") + to("first", "{path: {value: /first}}") + to("one", "{path: {value: /any}}") +
			to("one", "{path: {value: /ws}}"),
		check: func(t *testing.T, r *routing) {
			h2c := func(path string) question {
				return getting(strings.Replace(url("protocols", path), "http:", "h2c:", 1))
			}
			r.client.steps(t, on(getting(url("protocols", "/second")), over("HTTP/2.0")), on(h2c("/second"), over("HTTP/2.0")), on(getting(url("protocols", "/first")), over("HTTP/1.1")), on(h2c("/first"), over("HTTP/1.1")),
				on(getting(url("protocols", "/any")), over("HTTP/1.1")), on(h2c("/any"), over("HTTP/2.0")))
			socket := question{URL: "ws://protocols:8080/ws", Body: "hello"}
			r.client.steps(t, on(socket, status(101), func(a reply) error {
				return that(strings.HasPrefix(a.Body, "one@") && strings.HasSuffix(a.Body, " hello"), "no echo")
			}))
		},
	},
	{
		name:  "sockets",
		ports: []string{"{name: live, port: 8080, appProtocol: kubernetes.io/ws}"},
		rules: to("sockets", "{path: {value: /ws}}"),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(question{URL: "ws://sockets:8080/ws", Body: "hello"}, status(101), func(a reply) error { return that(strings.HasSuffix(a.Body, " hello"), "no echo") }))
		},
	},
	{
		name: "shares",
		rules: `
  - {name: split, matches: [{path: {value: /split}}], backendRefs: [{name: one, port: 8080, weight: 70}, {name: two, port: 8080, weight: 30}]}
  - {name: half, matches: [{path: {value: /half}}], backendRefs: [{name: one, port: 8080}, {name: not-there, port: 8080}]}
  - {name: zero, matches: [{path: {value: /zero}}], backendRefs: [{name: one, port: 8080, weight: 0}]}
`,
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("shares", "/split")), status(200)), on(getting(url("shares", "/half")), by("one")), on(getting(url("shares", "/zero")), status(500)))
			const n = 400
			for path, want := range map[string]float64{"/split": 0.7, "/half": 0.5} {
				one, other := 0, 0
				for _, answer := range r.client.many(n, getting(url("shares", path))) {
					switch {
					case by("one")(answer) == nil:
						one++
					case path == "/split" && by("two")(answer) == nil, path == "/half" && status(500)(answer) == nil:
						other++
					default:
						t.Fatalf("%s: %+v", path, answer)
					}
				}
				if err := share(one, n, want); err != nil {
					t.Errorf("%s: one served %v", path, err)
				}
			}
		},
	},
	{
		name: "broken",
		rules: `
  - {matches: [{path: {value: /fine}}], backendRefs: [{name: one, port: 8080}]}
  - {matches: [{path: {value: /kind}}], backendRefs: [{group: example.com, kind: Bucket, name: one, port: 8080}]}
  - {matches: [{path: {value: /name}}], backendRefs: [{name: not-there, port: 8080}]}
  - {matches: [{path: {value: /number}}], backendRefs: [{name: one, port: 8081}]}
  - {matches: [{path: {value: /tls}}], backendRefs: [{name: secret, port: 443}]}
  - {matches: [{path: {value: /omitted}}]}
  - {matches: [{path: {value: /empty}}], backendRefs: []}
  - {matches: [{path: {value: /nobody}}], backendRefs: [{name: nobody, port: 8080}]}
  - {matches: [{path: {value: /closed}}], backendRefs: [{name: closed, port: 8080}]}
  - {matches: [{path: {value: /far}}], backendRefs: [{name: far, namespace: e2e-routes-elsewhere, port: 8080}]}
`,
		check: func(t *testing.T, r *routing) {
			u := func(path string) question { return getting(url("broken", path)) }
			r.client.steps(t, on(u("/fine"), by("one")), on(u("/kind"), status(500)), on(u("/name"), status(500)), on(u("/number"), status(500)), on(u("/tls"), status(500)), on(u("/omitted"), status(500)), on(u("/empty"), status(500)),
				on(u("/nobody"), status(503)), on(u("/closed"), status(503)), on(u("/"), status(404)),
				// Another namespace's backend, whose owner was not asked.
				on(u("/far"), by("far")))
			r.of(t).says("httproute", "broken", "broken", "Accepted=True Accepted", "ResolvedRefs=False InvalidKind")
		},
	},
	{
		name: "said",
		more: httpRoute("said-partly", "said", to("one", "{path: {value: /}}")+to("one", `{path: {type: RegularExpression, value: "(["}}`)) +
			httpRoute("said-nothing", "said", to("one", `{path: {type: RegularExpression, value: "/x(["}}`)) +
			httpRoute("said-backend", "said", to("not-there", "{path: {value: /backend}}")) +
			httpRoute("said-nowhere", "not-there", to("one", "{path: {value: /}}")) +
			strings.Replace(httpRoute("said-port", "said", to("one", "{path: {value: /}}")), "name: said}", "name: said, port: 81}", 1) +
			strings.Replace(httpRoute("said-section", "said", to("one", "{path: {value: /}}")), "name: said}", "name: said, sectionName: other}", 1) +
			strings.Replace(httpRoute("said-unbound", "far", to("one", "{path: {value: /}}")), "name: far}", "name: far, namespace: e2e-routes-elsewhere}", 1),
		check: func(t *testing.T, r *routing) {
			p, resolved := r.of(t), "ResolvedRefs=True ResolvedRefs"
			p.says("httproute", "said-partly", "said", "Accepted=True Accepted", resolved, "PartiallyInvalid=True UnsupportedValue")
			p.says("httproute", "said-nothing", "said", "Accepted=False UnsupportedValue", resolved)
			p.says("httproute", "said-backend", "said", "Accepted=True Accepted", "ResolvedRefs=False BackendNotFound")
			p.says("httproute", "said-nowhere", "not-there", "Accepted=False NoMatchingParent", resolved)
			p.says("httproute", "said-port", "said", "Accepted=False NoMatchingParent", resolved)
			p.says("httproute", "said-section", "said", "Accepted=False NoMatchingParent", resolved)
			p.says("httproute", "said-unbound", "far", "Accepted=False NoWaypoint", resolved)

			// What another controller says stays, word for word, and ours follows every change.
			const theirs = `{"parentRef": {"group": "", "kind": "Service", "name": "said"}, "controllerName": "example.com/other", "conditions": [{"type": "Accepted", "status": "True", "reason": "Theirs", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}`
			p.in("patch", "httproutes.gateway.networking.k8s.io", "said-backend", "--subresource=status", "--type=json", "-p", `[{"op": "add", "path": "/status/parents/0", "value": `+theirs+`}]`)
			p.apply(httpRoute("said-backend", "said", to("one", "{path: {value: /backend}}")))
			p.says("httproute", "said-backend", "said", "Accepted=True Accepted", resolved)
			p.apply(httpRoute("said-backend", "not-there", to("one", "{path: {value: /backend}}")))
			p.says("httproute", "said-backend", "not-there", "Accepted=False NoMatchingParent", resolved)
			_, parents, err := p.routeStatus("httproute", "said-backend")
			if err != nil || len(parents) != 2 || parents[0].ControllerName != "example.com/other" || parents[0].Conditions[0].Reason != "Theirs" || parents[0].Conditions[0].ObservedGeneration != 1 {
				t.Errorf("%v: %+v", err, parents)
			}
		},
	},
	{
		name:  "ports",
		ports: []string{anyPort, "{name: more, port: 8081, targetPort: 8080}", "{name: rest, port: 8082, targetPort: 8080}"},
		more: strings.Replace(httpRoute("ports-number", "ports", to("two", "{path: {value: /two}}")), "name: ports}", "name: ports, port: 8081}", 1) +
			strings.Replace(httpRoute("ports-name", "ports", to("two", "{path: {value: /named}}")), "name: ports}", "name: ports, sectionName: rest}", 1),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting("http://ports:8081/two"), by("two")), on(getting("http://ports:8081/named"), status(404)), on(getting("http://ports:8082/named"), by("two")), on(getting("http://ports:8082/two"), status(404)),
				on(getting("http://ports:8080/two"), by("one")))
		},
	},
	{
		// Hostnames are for Gateways: at a Service they mean nothing.
		name: "hostnames",
		more: strings.Replace(httpRoute("hostnames", "hostnames", to("two", "{path: {value: /}}")), "  rules:", "  hostnames: [www.example.com]\n  rules:", 1),
		check: func(t *testing.T, r *routing) {
			r.client.steps(t, on(getting(url("hostnames", "/")), by("two")), on(getting(url("hostnames", "/"), "Host: www.example.com"), by("two")))
		},
	},
	{
		// The client's namespace chooses; what others attach is nothing to it.
		name:  "consumers",
		ports: []string{anyPort, "{name: greeting, port: 7000}"},
		rules: to("one", "{path: {value: /producer}}"),
		check: func(t *testing.T, r *routing) {
			here, there := url("consumers", "/producer"), url("consumers.e2e-routes", "/producer")
			r.client.steps(t, on(getting(here), by("one")))
			r.stranger.steps(t, on(getting(there), by("one")))
			elsewhere := &place{t, r.bed, r.elsewhere.name}
			elsewhere.apply(strings.Replace(httpRoute("consumers", "consumers", "  - {matches: [{path: {value: /consumer}}], backendRefs: [{name: two, namespace: e2e-routes, port: 8080}]}"),
				"name: consumers}]", "name: consumers, namespace: e2e-routes}]", 1))
			elsewhere.says("httproute", "consumers", "consumers", "Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs")
			r.stranger.steps(t, on(getting(url("consumers.e2e-routes", "/consumer")), by("two")), on(getting(there), status(404)))
			r.client.steps(t, on(getting(here), by("one")), on(getting(url("consumers", "/consumer")), status(404)))
			elsewhere.in("delete", "httproutes.gateway.networking.k8s.io", "consumers")
			r.stranger.steps(t, on(getting(there), by("one")))
		},
	},
	{
		// A namespace's routes for requests leave other namespaces' connections alone.
		name:  "greetings",
		ports: []string{"{name: greeting, port: 7000}"},
		check: func(t *testing.T, r *routing) {
			greeted := func(pod string) expectation {
				return func(a reply) error { return that(strings.HasPrefix(a.Body, pod+"@"), "not greeted by %s", pod) }
			}
			r.client.steps(t, on(question{URL: "tcp://greetings:7000"}, greeted("one")))
			elsewhere := &place{t, r.bed, r.elsewhere.name}
			elsewhere.apply(strings.Replace(httpRoute("greetings", "greetings", "  - {backendRefs: [{name: far, port: 8080}]}"), "name: greetings}]", "name: greetings, namespace: e2e-routes}]", 1))
			elsewhere.says("httproute", "greetings", "greetings", "Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs")
			r.stranger.steps(t, on(getting("http://greetings.e2e-routes:7000/"), by("far"))) // it is in force
			r.client.steps(t, on(question{URL: "tcp://greetings:7000"}, greeted("one")))
			p := r.of(t)
			p.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: greetings}
spec:
  parentRefs: [{group: "", kind: Service, name: greetings}]
  rules: [{backendRefs: [{name: two, port: 7000}]}]
`)
			p.says("tcproute", "greetings", "greetings", "Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs")
			r.client.steps(t, on(question{URL: "tcp://greetings:7000"}, greeted("two")))
		},
	},
	{
		// What is encrypted goes by the name that the client asks for, and stays encrypted.
		name:  "names",
		ports: []string{"{name: tls, port: 443, targetPort: 8443}"},
		more: tlsRoute("left", "left.example") + tlsRoute("right", "*.example", "right.other") +
			strings.Replace(tlsRoute("nowhere", "nowhere.example"), "name: nowhere, port", "name: not-there, port", 1),
		check: func(t *testing.T, r *routing) {
			asked := func(name string) question { return question{URL: "tls://names:443", Body: name} }
			shows := func(pod string) expectation {
				return func(a reply) error { return that(a.Error == "" && a.Body == pod, "not the certificate of %s", pod) }
			}
			reset := func(a reply) error { return that(a.Error != "", "it is not refused") }
			r.client.steps(t, on(asked("left.example"), shows("left")), on(asked("LEFT.example"), shows("left")), on(asked("more.left.example"), shows("right")), on(asked("right.other"), shows("right")),
				on(asked("example"), reset), on(asked("else.where"), reset), on(asked(""), reset), on(asked("nowhere.example"), reset),
				on(getting("http://names:443/"), reset)) // no TLS
			p := r.of(t)
			p.says("tlsroute", "left", "names", "Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs")
			p.says("tlsroute", "nowhere", "names", "Accepted=True Accepted", "ResolvedRefs=False BackendNotFound")
		},
	},
	{
		name:  "calls",
		ports: []string{"{name: calls, port: 9090}"},
		more: grpcRoute("calls", "calls", `
  - {matches: [{method: {service: a.Exact, method: Do}}], backendRefs: [{name: two, port: 9090}]}
  - {matches: [{method: {service: a.Exact}}], backendRefs: [{name: one, port: 9090}]}
  - {matches: [{method: {method: Anywhere}}], backendRefs: [{name: two, port: 9090}]}
  - {matches: [{method: {type: RegularExpression, service: "b\\..*"}}], backendRefs: [{name: two, port: 9090}]}
  - {matches: [{headers: [{name: x-v, value: one}]}], backendRefs: [{name: one, port: 9090}]}
  - {matches: [{headers: [{name: x-v, value: one}, {name: x-w, type: RegularExpression, value: "[0-9]+"}]}], backendRefs: [{name: two, port: 9090}]}
  - matches: [{method: {service: c.Changed}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: s}]}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: two, port: 9090}}}
    backendRefs: [{name: one, port: 9090, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: b}]}}]}]
  - {matches: [{method: {service: d.Missing}}], backendRefs: [{name: not-there, port: 9090}]}
  - {matches: [{method: {service: e.Split}}], backendRefs: [{name: one, port: 9090, weight: 70}, {name: two, port: 9090, weight: 30}]}
`) + httpRoute("calls-too", "calls", to("one", "{path: {value: /}}")),
		check: func(t *testing.T, r *routing) {
			call := func(method string, fields ...string) question { return ask("", "grpc://calls:9090/"+method, fields...) }
			const unimplemented, unknown = 12, 2
			r.client.steps(t, on(call("a.Exact/Do"), status(0), by("two")), on(call("a.Exact/Other"), by("one")), on(call("x.Y/Anywhere"), by("two")), on(call("b.C/D"), by("two")),
				on(call("x.Y/Z", "x-v: one"), by("one")), on(call("x.Y/Z", "x-v: one", "x-w: 12"), by("two")), on(call("x.Y/Z"), status(unimplemented)), on(call("A.exact/Do"), status(unimplemented)),
				on(call("c.Changed/Do", "x-set: x", "x-add: x", "x-gone: x"), by("one"), got("x-set", "s"), got("x-add", "x", "a", "b"), got("x-gone"), bears("x-answer", "s")),
				on(call("d.Missing/Do"), status(unknown)),
				// Requests that are no calls are none of it, whatever the HTTPRoute says.
				on(getting("http://calls:9090/a.Exact/Do"), status(404)))
			one := 0
			const n = 400
			// All at once, and each looks the name up and has a connection of its own.
			for _, answer := range r.client.burst(n, n, call("e.Split/Do")) {
				if by("one")(answer) == nil {
					one++
				} else if by("two")(answer) != nil {
					t.Fatalf("%+v", answer)
				}
			}
			if err := share(one, n, 0.7); err != nil {
				t.Error(err)
			}
			p, resolved := r.of(t), "ResolvedRefs=True ResolvedRefs"
			p.says("grpcroute", "calls", "calls", "Accepted=True Accepted", "ResolvedRefs=False BackendNotFound")
			p.says("httproute", "calls-too", "calls", "Accepted=False Conflicted", resolved)
		},
	},
}
