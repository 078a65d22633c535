package session

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

var now = time.Unix(1_800_000_000, 0)

func compile(t *testing.T, in *mesh.SessionPersistence) *Persistence {
	t.Helper()
	p, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTokenComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		in      *mesh.SessionPersistence
		sends   func(got http1.Field) []http1.Field
		written string // begins and ends
		ends    time.Duration
	}{
		"cookie": {
			&mesh.SessionPersistence{Name: "s"},
			func(got http1.Field) []http1.Field {
				value, _, _ := strings.Cut(got.Value, ";")
				return []http1.Field{{Name: "cookie", Value: "a=b"}, {Name: "cookie", Value: "x=y;  " + value + "; z"}}
			},
			"set-cookie: s=*; Path=/; HttpOnly; SameSite=Lax", 0,
		},
		"permanent cookie": {
			&mesh.SessionPersistence{Name: "s", Path: "/shop", Permanent: true, AbsoluteTimeout: durationpb.New(time.Hour)},
			func(got http1.Field) []http1.Field {
				value, _, _ := strings.Cut(got.Value, ";")
				return []http1.Field{{Name: "cookie", Value: value}}
			},
			"set-cookie: s=*; Path=/shop; HttpOnly; SameSite=Lax; Max-Age=3600", time.Hour,
		},
		"field": {
			&mesh.SessionPersistence{Name: "X-Session", Type: mesh.SessionPersistence_HEADER, AbsoluteTimeout: durationpb.New(time.Minute)},
			func(got http1.Field) []http1.Field { return []http1.Field{{Name: "x-other", Value: "1"}, got} },
			"x-session: *", time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, c.in)
			begun := p.Begin("shop/cart", 80, "pod-1", now)
			fields := p.Write(nil, begun, now)
			if len(fields) != 1 {
				t.Fatal(fields)
			}
			before, after, _ := strings.Cut(c.written, "*")
			line := fields[0].Name + ": " + fields[0].Value
			if !strings.HasPrefix(line, before) || !strings.HasSuffix(line, after) || strings.Contains(line, "pod-1") {
				t.Errorf("written: %s", line)
			}
			got, ok := p.Read(c.sends(fields[0]), now)
			if !ok || got != begun {
				t.Fatalf("read %v, %v, want %v", got, ok, begun)
			}
			if !got.IsBackend("shop/cart", 80) || got.IsBackend("shop/cart", 81) || got.IsBackend("shop/other", 80) || !got.IsEndpoint("pod-1") || got.IsEndpoint("pod-2") {
				t.Error("it is not known again")
			}
			if c.ends == 0 {
				return
			}
			for after, want := range map[time.Duration]bool{c.ends - time.Second: true, c.ends: false} {
				if _, ok := p.Read(c.sends(fields[0]), now.Add(after)); ok != want {
					t.Errorf("after %v: %v", after, ok)
				}
			}
		})
	}
}

func TestWhatIsNoTokenBeginsASession(t *testing.T) {
	p := compile(t, &mesh.SessionPersistence{Name: "s"})
	for _, cookie := range []string{"", "s", "s=", "s=short", "t=" + Token{1, 2, 0}.String(), "s=" + Token{1, 2, 0}.String() + "AA", "s=" + strings.Repeat("*", 32), `s="` + Token{1, 2, 0}.String() + `"`} {
		if got, ok := p.Read([]http1.Field{{Name: "cookie", Value: cookie}}, now); ok {
			t.Errorf("%q: %v", cookie, got)
		}
	}
}

func TestWhatCannotBeKept(t *testing.T) {
	for name, in := range map[string]*mesh.SessionPersistence{
		"no name":           {},
		"a bad name":        {Name: "a b"},
		"a type":            {Name: "s", Type: 9},
		"a negative time":   {Name: "s", AbsoluteTimeout: durationpb.New(-1)},
		"years":             {Name: "s", AbsoluteTimeout: durationpb.New(maxAbsolute + 1)},
		"idle":              {Name: "s", IdleTimeout: durationpb.New(time.Minute)},
		"no path":           {Name: "s", Path: "shop"},
		"two attributes":    {Name: "s", Path: "/; Domain=example.com"},
		"two lines":         {Name: "s", Path: "/\r\n"},
		"for ever":          {Name: "s", Permanent: true},
		"a permanent field": {Name: "s", Permanent: true, AbsoluteTimeout: durationpb.New(1), Type: mesh.SessionPersistence_HEADER},
	} {
		if p, err := Compile(in); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p, err := Compile(nil); p != nil || err != nil {
		t.Error(p, err)
	}
}
