package inbound

import (
	"net/netip"
	"testing"
)

func TestForwarded(t *testing.T) {
	tests := []struct {
		values []string
		want   string // empty: refused
	}{
		{[]string{`for="10.1.2.3:4711"`}, "10.1.2.3:4711"},
		{[]string{`for="[fd00::1]:4711"`}, "[fd00::1]:4711"},
		{[]string{`For="10.1.2.3:4711";host=cart.shop`}, "10.1.2.3:4711"},
		{[]string{`proto=http; for="10.1.2.3:4711"`}, "10.1.2.3:4711"},
		{[]string{`for="[::ffff:10.1.2.3]:4711"`}, "10.1.2.3:4711"},

		{nil, ""},
		{[]string{""}, ""},
		{[]string{`for="10.1.2.3:1"`, `for="10.1.2.4:1"`}, ""},
		{[]string{`for="10.1.2.3:1", for="10.1.2.4:1"`}, ""},
		{[]string{`for="10.1.2.3:1";for="10.1.2.4:1"`}, ""},
		{[]string{`for=10.1.2.3`}, ""},
		{[]string{`for="10.1.2.3"`}, ""},
		{[]string{`for="10.1.2.3:0"`}, ""},
		{[]string{`for="10.1.2.3:65536"`}, ""},
		{[]string{`for="_hidden:1"`}, ""},
		{[]string{`for="unknown"`}, ""},
		{[]string{`for="fd00::1:4711"`}, ""},
		{[]string{`for="[fe80::1%eth0]:1"`}, ""},
		{[]string{`for="127.0.0.1:1"`}, ""},
		{[]string{`for="0.0.0.0:1"`}, ""},
		{[]string{`for="224.0.0.1:1"`}, ""},
		{[]string{`for="`}, ""},
		{[]string{`for="10.1.2.3:1`}, ""},
		{[]string{`for`}, ""},
		{[]string{`host=a`}, ""},
	}
	for _, test := range tests {
		got, err := parseForwarded(test.values)
		if test.want == "" && err == nil || test.want != "" && (err != nil || got.String() != test.want) {
			t.Errorf("%q: %v (%v), want %q", test.values, got, err, test.want)
		}
	}
}

// Whatever comes: an address that can be somebody's, or an error.
func FuzzForwarded(f *testing.F) {
	for _, seed := range []string{`for="10.1.2.3:4711"`, `for="[fd00::1]:4711";host=a`, `for=unknown`, `;;=`, `for="";for=`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		client, err := parseForwarded([]string{value})
		if err != nil {
			return
		}
		again, err := parseForwarded([]string{`for="` + client.String() + `"`})
		if err != nil || again != client || client.Addr().Is4In6() || client.Port() == 0 || client.Addr() == (netip.Addr{}) {
			t.Errorf("%q: %v, again %v (%v)", value, client, again, err)
		}
	})
}
