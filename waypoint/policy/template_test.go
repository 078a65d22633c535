package policy_test

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/policy"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// FuzzTemplate: there is no path, whatever characters it has, whose segments a template
// does not see: {*} stands for each of them, {**} for all, and each for itself.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/", "/!$&'()*+,=:@~", "/%2A/{*}", "/%7B**%7D/x", "/%C3%A9/%3F%23/%25", "/%252", "/a//b/../c"} {
		f.Add(s, uint8(1))
	}
	f.Fuzz(func(t *testing.T, target string, which uint8) {
		r, err := request.Read("GET", "cart", target, nil)
		if err != nil {
			return
		}
		s := subject(t, "GET", "cart", target)
		segments := strings.Split(r.Path[1:], "/")
		i := int(which) % len(segments)
		templates := map[string]bool{"/{**}": true, "/x/{**}": segments[0] == "x"}
		if segments[i] != "" {
			starred := slices.Clone(segments)
			starred[i] = "{*}"
			templates["/"+strings.Join(starred, "/")] = true
			if segments[len(segments)-1] != "" { // no template has an empty segment but at its end
				templates["/"+strings.Join(append(starred, "{*}"), "/")] = false
			}
			templates["/"+strings.Join(append(slices.Clone(segments[:i]), "{**}"), "/")] = true
		}
		for template, want := range templates {
			p, err := policy.Parse(of(mesh.RequestPolicy_DENY, operation(&mesh.RequestOperation{Paths: text(template)})))
			if err != nil {
				want = true // it cannot be read, and denies what it may be about
			}
			if policy.Decide(&s, []*policy.Policy{p}).Allowed == want {
				t.Fatalf("%q denies %q: %v, %v", template, r.Path, !want, err)
			}
			if starry := strings.ContainsAny(request.Plain(r.Path), "*{}"); err != nil && !starry {
				t.Fatalf("%q cannot be read: %v", template, err)
			}
		}
	})
}

// FuzzFields: of a field with any bytes in it, a DENY of what is not among its values lets
// through only what is, and an ALLOW of its values nothing else.
func FuzzFields(f *testing.F) {
	for _, s := range []string{"user", "user,user", "user, admin", "\xff", "us\xffer", "user,\xff", " user", "user\xc3", ""} {
		f.Add(s, "user")
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		var fields []http1.Field
		for _, v := range []string{one, two} {
			field, err := http1.ParseField("x-role: " + v)
			if err != nil {
				return
			}
			fields = append(fields, field)
		}
		all := true
		for _, f := range fields {
			for element := range strings.SplitSeq(f.Value, ",") {
				all = all && utf8.ValidString(f.Value) && strings.Trim(element, " \t") == "user"
			}
		}
		s := subject(t, "GET", "cart", "/", "x-role", fields[0].Value, "x-role", fields[1].Value)
		if got := decide(s, of(mesh.RequestPolicy_DENY, when("request.headers[x-role]", nil, text("user")))).Allowed; got != all {
			t.Fatalf("DENY of what is not user lets %q through: %v", fields, got)
		}
		if got := decide(s, of(mesh.RequestPolicy_ALLOW, when("request.headers[x-role]", text("user"), nil))).Allowed; got != all {
			t.Fatalf("ALLOW of user lets %q through: %v", fields, got)
		}
		some := slices.ContainsFunc(fields, func(f http1.Field) bool { return f.Value == "user" || !utf8.ValidString(f.Value) })
		if some && decide(s, of(mesh.RequestPolicy_DENY, when("request.headers[x-role]", text("user"), nil))).Allowed {
			t.Fatalf("DENY of user lets %q through", fields)
		}
	})
}
