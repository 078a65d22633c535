package filter_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

func read(t *testing.T, method, target string, fields ...http1.Field) *request.Request {
	t.Helper()
	r, err := request.Read(method, "cart:8080", target, fields)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func compile(t *testing.T, filters ...*mesh.RouteFilter) *filter.Chain {
	t.Helper()
	c, err := filter.Compile(filters)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func full(path string) *mesh.PathModifier {
	return &mesh.PathModifier{Path: &mesh.PathModifier_Full{Full: path}}
}
func prefix(path string) *mesh.PathModifier {
	return &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: path}}
}
func redirect(r *mesh.RequestRedirect) *mesh.RouteFilter {
	return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Redirect{Redirect: r}}
}
func rewrite(r *mesh.URLRewrite) *mesh.RouteFilter {
	return &mesh.RouteFilter{Filter: &mesh.RouteFilter_Rewrite{Rewrite: r}}
}
func headers(m *mesh.HeaderModifier) *mesh.RouteFilter {
	return &mesh.RouteFilter{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: m}}
}

// The table of HTTPPathModifier's replacePrefixMatch.
func TestPrefixesAreReplaced(t *testing.T) {
	for _, c := range []struct{ path, prefix, replacement, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo", "/xyz/", "/xyz/bar"}, {"/foo", "/foo", "/xyz", "/xyz"}, {"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"}, {"/foo/", "/foo", "", "/"}, {"/foo", "/foo", "", "/"}, {"/foo/", "/foo", "/", "/"}, {"/foo", "/foo", "/", "/"}, {"/foo/bar", "/foo", "/", "/bar"},
		{"/foo", "", "/xyz", "/xyz/foo"},
	} {
		seen := read(t, "GET", c.path+"?q")
		h := filter.Head{Authority: seen.Authority(), Path: seen.Target()}
		compile(t, rewrite(&mesh.URLRewrite{Path: prefix(c.replacement)})).Request(seen, filter.Matched{Prefix: c.prefix, HasPrefix: true}, &h)
		if h.Path != c.want+"?q" || h.Authority != "cart:8080" {
			t.Errorf("%+v: %+v", c, h)
		}
	}
}

// The path of OPTIONS * is none that begins with anything.
func TestNoPathHasNoPrefix(t *testing.T) {
	seen := read(t, "OPTIONS", "*")
	h := filter.Head{Authority: seen.Authority(), Path: seen.Target()}
	compile(t, rewrite(&mesh.URLRewrite{Path: prefix("/xyz")})).Request(seen, filter.Matched{HasPrefix: true}, &h)
	if h.Path != "*" {
		t.Errorf("%+v", h)
	}
}

// HTTPRequestRedirectFilter: which port is named, and what stays as it was.
func TestRedirects(t *testing.T) {
	for _, c := range []struct {
		in     *mesh.RequestRedirect
		port   uint16
		status int
		want   string
	}{
		{&mesh.RequestRedirect{}, 80, 302, "http://cart/a/b?c"},
		{&mesh.RequestRedirect{Hostname: "x.example"}, 8080, 302, "http://x.example:8080/a/b?c"},
		{&mesh.RequestRedirect{Scheme: "https"}, 80, 302, "https://cart/a/b?c"},
		{&mesh.RequestRedirect{Scheme: "https", Port: 8443, StatusCode: 301}, 80, 301, "https://cart:8443/a/b?c"},
		{&mesh.RequestRedirect{Port: 80}, 8080, 302, "http://cart/a/b?c"},
		{&mesh.RequestRedirect{Scheme: "https", Port: 443, StatusCode: 308}, 80, 308, "https://cart/a/b?c"},
		{&mesh.RequestRedirect{Path: full("/z"), StatusCode: 307}, 80, 307, "http://cart/z?c"},
		{&mesh.RequestRedirect{Path: prefix("/z"), StatusCode: 303}, 80, 303, "http://cart/z/b?c"},
	} {
		a := compile(t, redirect(c.in)).Request(read(t, "GET", "/a/b?c"), filter.Matched{Prefix: "/a", HasPrefix: true, Port: c.port}, &filter.Head{})
		if a == nil || a.Status != c.status || len(a.Fields) != 1 || a.Fields[0] != (http1.Field{Name: "location", Value: c.want}) {
			t.Errorf("%v: %+v", c.in, a)
		}
	}
}

func TestFieldsAreSetAddedRemoved(t *testing.T) {
	came := []http1.Field{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}, {Name: "a", Value: "3"}, {Name: "c", Value: "4"}}
	h := filter.Head{Fields: came}
	compile(t, headers(&mesh.HeaderModifier{
		Set: []*mesh.HeaderModifier_Header{{Name: "A", Value: "5"}}, Add: []*mesh.HeaderModifier_Header{{Name: "b", Value: "6"}}, Remove: []string{"C"},
	})).Request(read(t, "GET", "/"), filter.Matched{}, &h)
	if got := list(h.Fields); got != "b=2 a=5 b=6" {
		t.Error(got)
	}
	if got := list(came); got != "a=1 b=2 a=3 c=4" {
		t.Errorf("what came is %s", got)
	}
}

func list(fields []http1.Field) string {
	var all []string
	for _, f := range fields {
		all = append(all, f.Name+"="+f.Value)
	}
	return strings.Join(all, " ")
}

func TestCORS(t *testing.T) {
	chain := func(c *mesh.CORS) *filter.Chain {
		return compile(t, &mesh.RouteFilter{Filter: &mesh.RouteFilter_Cors{Cors: c}})
	}
	some := chain(&mesh.CORS{
		AllowOrigins: []string{"https://shop.example", "https://*.bank.example"}, AllowMethods: []string{"PUT"}, AllowHeaders: []string{"x-a", "x-b"},
		ExposeHeaders: []string{"x-c"}, AllowCredentials: true, MaxAge: durationpb.New(60e9),
	})
	all := chain(&mesh.CORS{AllowOrigins: []string{"*"}, AllowMethods: []string{"*"}})
	credentials := chain(&mesh.CORS{AllowOrigins: []string{"*"}, AllowMethods: []string{"*"}, AllowHeaders: []string{"*"}, AllowCredentials: true})
	for _, c := range []struct {
		chain           *filter.Chain
		origin          string
		preflight, rest string
	}{
		{some, "https://shop.example", "access-control-allow-origin=https://shop.example vary=origin access-control-allow-credentials=true access-control-allow-methods=PUT access-control-allow-headers=x-a, x-b access-control-max-age=60 access-control-expose-headers=x-c",
			"etag=x access-control-allow-origin=https://shop.example vary=origin access-control-allow-credentials=true access-control-expose-headers=x-c"},
		{some, "https://evil.example", "", "etag=x"}, {some, "http://shop.example", "", "etag=x"}, {some, "https://bank.example", "", "etag=x"}, {some, "https://.bank.example.evil", "", "etag=x"},
		{some, "null", "", "etag=x"},
		{all, "https://x", "access-control-allow-origin=* access-control-allow-methods=* access-control-max-age=5", "etag=x access-control-allow-origin=*"},
		{credentials, "https://x", "access-control-allow-origin=https://x vary=origin access-control-allow-credentials=true access-control-allow-methods=PUT access-control-allow-headers=x-z access-control-max-age=5",
			"etag=x access-control-allow-origin=https://x vary=origin access-control-allow-credentials=true"},
	} {
		o := http1.Field{Name: "origin", Value: c.origin}
		a := c.chain.Request(read(t, "OPTIONS", "/", o, http1.Field{Name: "access-control-request-method", Value: "PUT"}, http1.Field{Name: "access-control-request-headers", Value: "x-z"}), filter.Matched{}, &filter.Head{})
		if a == nil || a.Status != 200 || list(a.Fields) != c.preflight {
			t.Errorf("%s: preflight %+v", c.origin, a)
		}
		seen := read(t, "PUT", "/", o)
		if a := c.chain.Request(seen, filter.Matched{}, &filter.Head{}); a != nil {
			t.Errorf("%s: answered %+v", c.origin, a)
		}
		if got := list(c.chain.Response(seen, []http1.Field{{Name: "etag", Value: "x"}, {Name: "access-control-allow-origin", Value: "the endpoint's"}})); got != c.rest {
			t.Errorf("%s: %s", c.origin, got)
		}
	}
	// Ports: one that is not written is the scheme's own, on either side.
	ports := chain(&mesh.CORS{AllowOrigins: []string{"https://a.example:443", "http://*.example:8080", "https://*", "http://[2001:db8::1]"}})
	for origin, want := range map[string]bool{
		"https://a.example": true, "https://a.example:443": true, "https://other:443": true, "https://a.example:8443": false, "http://a.example": false,
		"http://b.a.example:8080": true, "http://b.example": false, "https://x": true, "http://[2001:db8::1]": true, "http://[2001:db8::1]:80": true, "http://[2001:db8::1]:81": false,
	} {
		fields := ports.Response(read(t, "GET", "/", http1.Field{Name: "origin", Value: origin}), nil)
		if got := strings.Contains(list(fields), "allow-origin="+origin); got != want {
			t.Errorf("%s: allowed is %v, want %v", origin, got, want)
		}
	}
	// What is no preflight goes on.
	if a := some.Request(read(t, "OPTIONS", "/", http1.Field{Name: "origin", Value: "https://shop.example"}), filter.Matched{}, &filter.Head{}); a != nil {
		t.Errorf("%+v", a)
	}
}

func TestFiltersThatCannotBeCarriedOut(t *testing.T) {
	set := func(name, value string) *mesh.RouteFilter {
		return headers(&mesh.HeaderModifier{Set: []*mesh.HeaderModifier_Header{{Name: name, Value: value}}})
	}
	for field, in := range map[string][]*mesh.RouteFilter{
		"filters[0].filter":                        {{}},
		"filters[0].request_headers: set[0].name":  {set("content-length", "1")},
		"filters[0].request_headers: set[0].value": {set("a", "b\r\nc: d")},
		"filters[1].request_headers: set[0].name":  {set("a", "b"), set("a b", "")},
		"filters[0].redirect: scheme":              {redirect(&mesh.RequestRedirect{Scheme: "javascript"})},
		"filters[0].redirect: status_code":         {redirect(&mesh.RequestRedirect{StatusCode: 200})},
		"filters[0].redirect: hostname":            {redirect(&mesh.RequestRedirect{Hostname: "a/b"})},
		"filters[0].redirect: path":                {redirect(&mesh.RequestRedirect{Path: full("//\\")})},
		"filters[0].rewrite: path":                 {rewrite(&mesh.URLRewrite{Path: prefix("/a\r\n")})},
		"filters: both redirect and rewrite":       {redirect(&mesh.RequestRedirect{}), rewrite(&mesh.URLRewrite{})},
		"filters[0].mirror: backend":               {{Filter: &mesh.RouteFilter_Mirror{Mirror: &mesh.RequestMirror{}}}},
		"filters[0].cors: allow_origins[0]":        {{Filter: &mesh.RouteFilter_Cors{Cors: &mesh.CORS{AllowOrigins: []string{"a"}}}}},
		"filters[0].cors: allow_methods[0]":        {{Filter: &mesh.RouteFilter_Cors{Cors: &mesh.CORS{AllowMethods: []string{"G T"}}}}},
	} {
		if _, err := filter.Compile(in); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
