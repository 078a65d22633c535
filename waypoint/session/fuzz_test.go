package session

import (
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// FuzzRead: whatever clients send for a token, it is none, or it is one that has not ended, and comes back as it would be written.
func FuzzRead(f *testing.F) {
	cookie, err := Compile(&mesh.SessionPersistence{Name: "s"})
	if err != nil {
		f.Fatal(err)
	}
	header, err := Compile(&mesh.SessionPersistence{Name: "x-s", Type: mesh.SessionPersistence_HEADER})
	if err != nil {
		f.Fatal(err)
	}
	good := cookie.Begin("shop/cart", 80, "pod-1", now).String()
	for _, value := range []string{"", good, "s=" + good, "a=b; s=" + good + "; s=x", "s=;s", "s=" + good[1:], "s==" + good} {
		f.Add(value, int64(0))
	}
	f.Fuzz(func(t *testing.T, value string, at int64) {
		when := time.Unix(at, 0)
		for _, c := range []struct {
			p     *Persistence
			field string
		}{{cookie, "cookie"}, {header, "x-s"}} {
			fields := []http1.Field{{Name: "x-other", Value: value}, {Name: c.field, Value: value}}
			token, ok := c.p.Read(fields, when)
			if !ok {
				continue
			}
			if token.ends != 0 && when.Unix() >= token.ends {
				t.Errorf("%q is of a session that has ended", value)
			}
			var again []http1.Field
			if c.p.inHeader {
				again = []http1.Field{{Name: c.field, Value: token.String()}}
			} else {
				again = []http1.Field{{Name: c.field, Value: "s=" + token.String()}}
			}
			if back, ok := c.p.Read(again, when); !ok || back != token {
				t.Errorf("%q is %+v, and comes back as %+v, %v", value, token, back, ok)
			}
			if written := c.p.Write(slices.Clone(fields), token, when); len(written) != 3 {
				t.Errorf("written: %v", written)
			}
		}
	})
}
