package authorizer

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

func option(name, value string, changes ...func(*core.HeaderValueOption)) *core.HeaderValueOption {
	o := &core.HeaderValueOption{Header: &core.HeaderValue{Key: name, Value: value}}
	for _, c := range changes {
		c(o)
	}
	return o
}

func appends(o *core.HeaderValueOption) { o.Append = wrapperspb.Bool(true) }
func action(a core.HeaderValueOption_HeaderAppendAction) func(*core.HeaderValueOption) {
	return func(o *core.HeaderValueOption) { o.AppendAction = a }
}

func agrees(ok *auth.OkHttpResponse) *auth.CheckResponse {
	return &auth.CheckResponse{Status: &status.Status{}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: ok}}
}

func denies(code codes.Code, d *auth.DeniedHttpResponse) *auth.CheckResponse {
	return &auth.CheckResponse{Status: &status.Status{Code: int32(code)}, HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: d}}
}

func TestAgreementChangesFields(t *testing.T) {
	a, err := Read(agrees(&auth.OkHttpResponse{
		Headers: []*core.HeaderValueOption{
			option("X-User", "ann"), option("x-list", "b", appends), option("x-set", "1"), option("x-set", "2"), option("x-new", "n", action(core.HeaderValueOption_ADD_IF_ABSENT)),
			option("x-old", "n", action(core.HeaderValueOption_ADD_IF_ABSENT)), option("x-none", "n", action(core.HeaderValueOption_OVERWRITE_IF_EXISTS)),
			option("x-raw", "", func(o *core.HeaderValueOption) { o.Header.RawValue = []byte("raw") }),
		},
		HeadersToRemove:      []string{"X-Secret"},
		ResponseHeadersToAdd: []*core.HeaderValueOption{option("Set-Cookie", "a=1")},
	}))
	if err != nil || !a.Agreed {
		t.Fatal(a, err)
	}
	before := []http1.Field{{Name: "x-user", Value: "root"}, {Name: "x-list", Value: "a"}, {Name: "x-secret", Value: "s"}, {Name: "x-old", Value: "o"}}
	untouched := slices.Clone(before)
	got := fmt.Sprint(a.Request.Apply(before))
	if want := "[{x-list a} {x-old o} {x-user ann} {x-list b} {x-set 1} {x-set 2} {x-new n} {x-raw raw}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if !slices.Equal(before, untouched) {
		t.Error("what it was made from has changed")
	}
	if got := fmt.Sprint(a.Response.Apply([]http1.Field{{Name: "set-cookie", Value: "b=2"}})); got != "[{set-cookie b=2} {set-cookie a=1}]" {
		t.Error(got)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		said   *auth.CheckResponse
		status int
		rest   string
	}{
		"in one word":     {&auth.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, 403, "[] "},
		"as agreement":    {&auth.CheckResponse{Status: &status.Status{Code: 16}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{}}}, 403, "[] "},
		"in its own way":  {denies(7, &auth.DeniedHttpResponse{Status: &envoy.HttpStatus{Code: 302}, Headers: []*core.HeaderValueOption{option("Location", "/login")}, Body: "go"}), 302, "[{location /login}] go"},
		"without details": {denies(7, &auth.DeniedHttpResponse{}), 403, "[] "},
	} {
		a, err := Read(c.said)
		if err != nil || a.Agreed || a.Status != c.status || fmt.Sprint(a.Fields)+" "+string(a.Body) != c.rest {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// What is no clear answer is none.
func TestAnswersWithoutSense(t *testing.T) {
	header := func(name, value string) *auth.CheckResponse {
		return agrees(&auth.OkHttpResponse{Headers: []*core.HeaderValueOption{option(name, value)}})
	}
	many := &auth.OkHttpResponse{}
	for i := range maxFields + 1 {
		many.Headers = append(many.Headers, option(fmt.Sprint("x", i), ""))
	}
	for name, said := range map[string]*auth.CheckResponse{
		"nothing":           {},
		"agrees and denies": denies(0, &auth.DeniedHttpResponse{}),
		"failed":            {Status: &status.Status{Code: 13}, HttpResponse: &auth.CheckResponse_ErrorResponse{}},
		"status 100":        denies(7, &auth.DeniedHttpResponse{Status: &envoy.HttpStatus{Code: 100}}),
		"status 101":        denies(7, &auth.DeniedHttpResponse{Status: &envoy.HttpStatus{Code: 101}}),
		"status 700":        denies(7, &auth.DeniedHttpResponse{Status: &envoy.HttpStatus{Code: 700}}),
		"two lines":         header("x", "a\r\nx-admin: yes"),
		"two lines, denied": denies(7, &auth.DeniedHttpResponse{Headers: []*core.HeaderValueOption{option("x", "a\nb")}}),
		"a name of two":     header("x\r\ny", "a"),
		"a name with value": header("x: y", "a"),
		"no name":           header("", "a"),
		"no header":         agrees(&auth.OkHttpResponse{Headers: []*core.HeaderValueOption{{}}}),
		"pseudo":            header(":path", "/admin"),
		"host":              header("Host", "other"),
		"length":            header("Content-Length", "5"),
		"chunks":            header("Transfer-Encoding", "chunked"),
		"removes the host":  agrees(&auth.OkHttpResponse{HeadersToRemove: []string{"host"}}),
		"removes nonsense":  agrees(&auth.OkHttpResponse{HeadersToRemove: []string{"a b"}}),
		"of the response":   agrees(&auth.OkHttpResponse{ResponseHeadersToAdd: []*core.HeaderValueOption{option("content-length", "0")}}),
		"query":             agrees(&auth.OkHttpResponse{QueryParametersToRemove: []string{"a"}}),
		"too much":          agrees(many),
	} {
		if a, err := Read(said); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
	// An empty status is agreement, as it is to Envoy: OK is what protobuf leaves out.
	if a, err := Read(&auth.CheckResponse{Status: &status.Status{}}); err != nil || !a.Agreed {
		t.Error(a, err)
	}
}

func TestQuestion(t *testing.T) {
	r, err := request.Read("GET", "cart:81", "/a/../b?x=1", []http1.Field{{Name: "x", Value: "1"}, {Name: "x", Value: "2"}, {Name: "y", Value: "\xff"}})
	if err != nil {
		t.Fatal(err)
	}
	client := Peer{Address: netip.MustParseAddrPort("10.9.0.2:5"), Identity: spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}}
	q := Question(&r, 2, -1, nil, client, Peer{Address: netip.MustParseAddrPort("10.9.100.1:80")}, map[string]string{"rules": "cart"}, time.Unix(1, 0))
	if _, err := proto.Marshal(q); err != nil {
		t.Error(err)
	}
	h, from := q.GetAttributes().GetRequest().GetHttp(), q.GetAttributes().GetSource()
	if h.GetMethod() != "GET" || h.GetPath() != "/b?x=1" || h.GetHost() != "cart:81" || h.GetProtocol() != "HTTP/2" || h.GetSize() != -1 || h.GetHeaders()["x"] != "1,2" ||
		h.GetHeaders()[":path"] != "/b?x=1" || from.GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/web" || from.GetAddress().GetSocketAddress().GetPortValue() != 5 || from.GetCertificate() != "" ||
		!maps.Equal(q.GetAttributes().GetContextExtensions(), map[string]string{"rules": "cart"}) {
		t.Error(q)
	}
	for _, c := range []struct {
		body Body
		text string
		raw  []byte
		says string
	}{
		{Body{Bytes: []byte("pay")}, "pay", nil, "false"},
		{Body{Bytes: []byte{0xff, 0}, Partial: true}, "", []byte{0xff, 0}, "true"},
		{Body{}, "", nil, "false"},
	} {
		q := Question(&r, 1, 3, &c.body, client, Peer{}, nil, time.Unix(1, 0))
		if _, err := proto.Marshal(q); err != nil {
			t.Error(err)
		}
		if h := q.GetAttributes().GetRequest().GetHttp(); h.GetBody() != c.text || !bytes.Equal(h.GetRawBody(), c.raw) || h.GetHeaders()["x-envoy-auth-partial-body"] != c.says {
			t.Errorf("%+v is told as %v", c.body, h)
		}
	}
}

// Whatever a provider says, what goes on can be a request's, and a refusal is a response's.
func FuzzRead(f *testing.F) {
	for _, said := range []*auth.CheckResponse{
		{}, denies(7, &auth.DeniedHttpResponse{Status: &envoy.HttpStatus{Code: 302}, Headers: []*core.HeaderValueOption{option("Location", "/")}, Body: "x"}),
		agrees(&auth.OkHttpResponse{Headers: []*core.HeaderValueOption{option("a", "b", appends)}, HeadersToRemove: []string{"c"}, ResponseHeadersToAdd: []*core.HeaderValueOption{option("d", "e")}}),
	} {
		b, err := proto.Marshal(said)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		said := &auth.CheckResponse{}
		if proto.Unmarshal(b, said) != nil {
			return
		}
		a, err := Read(said)
		if err != nil {
			return
		}
		if a.Agreed != (said.GetStatus().GetCode() == 0) || said.GetStatus() == nil || !a.Agreed && (a.Status < 200 || a.Status > 599) {
			t.Errorf("%v is read as %+v", said, a)
		}
		before := []http1.Field{{Name: "a", Value: "1"}, {Name: "host", Value: "cart"}}
		for _, fields := range [][]http1.Field{a.Fields, a.Request.Apply(before), a.Response.Apply(before)} {
			hosts := 0
			for _, field := range fields {
				if f, err := http1.ParseField(field.Name + ": " + field.Value); err != nil || f.Name != field.Name || strings.ContainsAny(field.Value, "\r\n") {
					t.Errorf("%+v cannot be", field)
				}
				if field.Name == "host" {
					hosts++
				}
			}
			if hosts > 1 {
				t.Error("a second host")
			}
		}
	})
}
