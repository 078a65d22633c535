package spiffe_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func TestParseAcceptsTheOneSpelling(t *testing.T) {
	for uri, want := range map[string]spiffe.ID{
		"spiffe://cluster.local/ns/shop/sa/cart":           {"cluster.local", "shop", "cart"},
		"spiffe://td/ns/kube-system/sa/default":            {"td", "kube-system", "default"},
		"spiffe://td/ns/0/sa/9":                            {"td", "0", "9"},
		"spiffe://a-b.example.org/ns/shop/sa/dots.in.name": {"a-b.example.org", "shop", "dots.in.name"},
		"spiffe://td/ns/ns/sa/sa":                          {"td", "ns", "sa"},
	} {
		got, err := spiffe.Parse(uri)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", uri, got, err, want)
		}
		if got.String() != uri {
			t.Errorf("Parse(%q).String() = %q", uri, got.String())
		}
		if got.URL().String() != uri {
			t.Errorf("Parse(%q).URL() = %q", uri, got.URL())
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, uri := range map[string]string{
		"empty":                      "",
		"another scheme":             "https://td/ns/a/sa/b",
		"scheme in upper case":       "SPIFFE://td/ns/a/sa/b",
		"no trust domain":            "spiffe:///ns/a/sa/b",
		"no namespace":               "spiffe://td/ns//sa/b",
		"no service account":         "spiffe://td/ns/a/sa/",
		"trailing slash":             "spiffe://td/ns/a/sa/b/",
		"trailing segment":           "spiffe://td/ns/a/sa/b/c",
		"leading space":              " spiffe://td/ns/a/sa/b",
		"trailing newline":           "spiffe://td/ns/a/sa/b\n",
		"NUL":                        "spiffe://td/ns/a/sa/b\x00",
		"NUL hides the rest":         "spiffe://td/ns/a/sa/admin\x00.evil",
		"percent-encoded letter":     "spiffe://td/ns/%61/sa/b",
		"percent-encoded slash":      "spiffe://td/ns/a%2fsa/sa/b",
		"query":                      "spiffe://td/ns/a/sa/b?x=y",
		"empty query":                "spiffe://td/ns/a/sa/b?",
		"fragment":                   "spiffe://td/ns/a/sa/b#x",
		"empty fragment":             "spiffe://td/ns/a/sa/b#",
		"user":                       "spiffe://me@td/ns/a/sa/b",
		"port":                       "spiffe://td:443/ns/a/sa/b",
		"trust domain in upper case": "spiffe://TD/ns/a/sa/b",
		"namespace in upper case":    "spiffe://td/ns/A/sa/b",
		"dot in the namespace":       "spiffe://td/ns/a.b/sa/c",
		"dot segments":               "spiffe://td/ns/../sa/b",
		"empty label":                "spiffe://td..example/ns/a/sa/b",
		"label begins with a hyphen": "spiffe://td/ns/-a/sa/b",
		"label ends with a hyphen":   "spiffe://td/ns/a-/sa/b",
		"wildcard":                   "spiffe://td/ns/*/sa/b",
		"letters swapped":            "spiffe://td/sa/a/ns/b",
		"not ASCII":                  "spiffe://td/ns/ä/sa/b",
		"not UTF-8":                  "spiffe://td/ns/\xff/sa/b",
		"namespace too long":         "spiffe://td/ns/" + strings.Repeat("a", 64) + "/sa/b",
		"service account too long":   "spiffe://td/ns/a/sa/" + strings.Repeat("a.", 127) + "b",
	} {
		if id, err := spiffe.Parse(uri); !errors.Is(err, spiffe.ErrMalformed) || !id.IsZero() {
			t.Errorf("%s: Parse(%q) = %v, %v; want ErrMalformed", name, uri, id, err)
		}
	}
}

func TestZeroIDIsNobody(t *testing.T) {
	if s := (spiffe.ID{}).String(); s != "" {
		t.Errorf("zero ID prints %q", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/cart")
	f.Add("spiffe://td/ns/a/sa/b?")
	f.Add("spiffe://td/ns/%61/sa/b#")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := spiffe.Parse(uri)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("Parse(%q) failed and returned %v", uri, id)
			}
			return
		}
		if id.String() != uri {
			t.Fatalf("Parse(%q).String() = %q", uri, id.String())
		}
		if id.URL().String() != uri {
			t.Fatalf("Parse(%q).URL() = %q", uri, id.URL())
		}
	})
}
