package filter_test

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

func read(t *testing.T, method, target string, fields ...http1.Field) *request.Request {
	t.Helper()
	r, err := request.Read(method, "cart.shop:8080", target, fields)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func TestHeadersAreSetThenAddedThenRemoved(t *testing.T) {
	got := filter.Headers([]http1.Field{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}}, &mesh.HeaderModifier{
		Set: []*mesh.HeaderModifier_Header{{Name: "a", Value: "set"}}, Add: []*mesh.HeaderModifier_Header{{Name: "a", Value: "added"}}, Remove: []string{"b", "c"},
	})
	if fmt.Sprint(got) != "[{a set} {a added}]" {
		t.Errorf("got %v", got)
	}
}

func TestPaths(t *testing.T) {
	full := func(p string) *mesh.PathModifier { return &mesh.PathModifier{Path: &mesh.PathModifier_Full{Full: p}} }
	replace := func(p string) *mesh.PathModifier {
		return &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: p}}
	}
	for _, test := range []struct {
		path, prefix string
		modifier     *mesh.PathModifier
		want         string
	}{
		{"/a/b", "/a", nil, "/a/b"}, {"/a/b", "/a", full("/x"), "/x"}, {"/a/b", "/a", replace("/x"), "/x/b"}, {"/a/b", "/a", replace("/x/"), "/x/b"},
		{"/a/b", "/a", replace("/"), "/b"}, {"/a", "/a", replace("/"), "/"}, {"/a", "/a", replace(""), "/"}, {"/a/b", "/", replace("/x"), "/x/a/b"},
	} {
		if got := filter.Path(test.path, test.modifier, test.prefix); got != test.want {
			t.Errorf("%s, %v: %s, want %s", test.path, test.modifier, got, test.want)
		}
	}
}

func TestRedirects(t *testing.T) {
	for _, test := range []struct {
		redirect *mesh.RequestRedirect
		status   int
		want     string
	}{
		{&mesh.RequestRedirect{}, 302, "http://cart.shop:8080/a/b?q=1"},
		{&mesh.RequestRedirect{Scheme: "https"}, 302, "https://cart.shop/a/b?q=1"},
		{&mesh.RequestRedirect{Hostname: "other", Port: 80, StatusCode: 301}, 301, "http://other/a/b?q=1"},
		{&mesh.RequestRedirect{Path: &mesh.PathModifier{Path: &mesh.PathModifier_Prefix{Prefix: "/x"}}, Port: 81}, 302, "http://cart.shop:81/x/b?q=1"},
	} {
		if status, location := filter.Redirect(read(t, "GET", "/a/b?q=1"), test.redirect, "/a", 80); status != test.status || location != test.want {
			t.Errorf("%v: %d %s", test.redirect, status, location)
		}
	}
}

func TestCORS(t *testing.T) {
	c := &mesh.CORS{AllowOrigins: []string{"https://*.shop.example"}, AllowMethods: []string{"GET", "PUT"}, AllowHeaders: []string{"*"}, ExposeHeaders: []string{"x-a"}, AllowCredentials: true}
	page := func(origin string) http1.Field { return http1.Field{Name: "origin", Value: origin} }
	asks := http1.Field{Name: "access-control-request-method", Value: "PUT"}
	fields, is := filter.Preflight(read(t, "OPTIONS", "/", page("https://www.shop.example"), asks, http1.Field{Name: "access-control-request-headers", Value: "x-b"}), c)
	want := "[{access-control-allow-origin https://www.shop.example} {vary origin} {access-control-allow-credentials true} {access-control-allow-methods GET, PUT} {access-control-allow-headers x-b}]"
	if !is || fmt.Sprint(fields) != want {
		t.Errorf("%v, %v", fields, is)
	}
	for _, origin := range []string{"https://shop.example", "http://www.shop.example", "https://www.shop.example.evil", "null"} {
		if fields, is := filter.Preflight(read(t, "OPTIONS", "/", page(origin), asks), c); !is || len(fields) != 0 {
			t.Errorf("%s: %v, %v", origin, fields, is)
		}
		if fields := filter.CORSResponse(read(t, "GET", "/", page(origin)), c); len(fields) != 0 {
			t.Errorf("%s: %v", origin, fields)
		}
	}
	if _, is := filter.Preflight(read(t, "OPTIONS", "/"), c); is {
		t.Error("OPTIONS of its own is taken for a browser's")
	}
	if fields := filter.CORSResponse(read(t, "GET", "/", page("https://www.shop.example")), c); len(fields) != 4 {
		t.Errorf("%v", fields)
	}
}

// What cannot be carried out is said, and never left out.
func TestFiltersThatCannotBeCarriedOut(t *testing.T) {
	set := func(name, value string) *mesh.RouteFilter {
		return &mesh.RouteFilter{Filter: &mesh.RouteFilter_RequestHeaders{RequestHeaders: &mesh.HeaderModifier{Set: []*mesh.HeaderModifier_Header{{Name: name, Value: value}}}}}
	}
	for _, f := range []*mesh.RouteFilter{
		{}, set("transfer-encoding", "chunked"), set("content-length", "1"), set("connection", "x"), set("a b", "c"), set("a", "b\r\nc: d"),
		{Filter: &mesh.RouteFilter_Redirect{Redirect: &mesh.RequestRedirect{StatusCode: 200}}},
		{Filter: &mesh.RouteFilter_Redirect{Redirect: &mesh.RequestRedirect{Hostname: "a\r\nb"}}},
		{Filter: &mesh.RouteFilter_Rewrite{Rewrite: &mesh.URLRewrite{Path: &mesh.PathModifier{Path: &mesh.PathModifier_Full{Full: "/a HTTP/1.1"}}}}},
	} {
		if filter.Check(f) == nil {
			t.Errorf("%v", f)
		}
	}
	if err := filter.Check(set("x-a", "b")); err != nil {
		t.Error(err)
	}
}
