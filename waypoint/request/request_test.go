package request_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/request"
)

// The table of the package's documentation.
func TestPaths(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a/b": "/a/b", "/a/": "/a/", "/%61%2Db%7e": "/a-b~", "/%c3%a9": "/%C3%A9", "/a/./b": "/a/b", "/a/../b": "/b", "/a/%2e%2E/b": "/b",
		"/a/..": "/", "/a/b/..": "/a/", "/a/.": "/a/", "//": "/", "/a//b": "/a/b", "//a": "/a", "/.a/..b/...": "/.a/..b/...", "/{x}|^`": "/%7Bx%7D%7C%5E%60",
		"/a:b@c!$&'()*+,=": "/a:b@c!$&'()*+,=", "/100%25": "/100%25", "/a%3Bb%3f%23": "/a%3Bb%3F%23", "/shop.Cart/Add": "/shop.Cart/Add",
		"/a//..": "/", "/a%25zz": "/a%25zz",
	} {
		got, err := request.Path(in)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestAmbiguousPaths(t *testing.T) {
	for _, in := range []string{
		"", "a", "*", "/..", "/../a", "/a/../../b", "/%2e%2e/a", "/a%2Fb", "/a%2fb", "/a%5Cb", "/a\\b", "/a;b", "/..;/admin", "/admin;", "/a%252Fb", "/%25%32%46",
		"/%00", "/%0d%0a", "/%7F", "/\x00", "/a b", "/%", "/%2", "/%zz", "/%FF", "/%C3", "/\xc3\xa9", "/a#b", "/\"", "/<", "/>", "/a?b",
	} {
		if got, err := request.Path(in); !errors.Is(err, request.ErrAmbiguous) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestHosts(t *testing.T) {
	for in, want := range map[string]string{
		"Cart": "cart", "cart.shop:80": "cart.shop", "cart.shop:443": "cart.shop:443", "cart.shop.": "cart.shop", "cart.shop.:8080": "cart.shop:8080", "10.1.2.3": "10.1.2.3",
		"[2001:DB8:0::1]:81": "[2001:db8::1]:81", "xn--bcher-kva.example": "xn--bcher-kva.example", "my_host": "my_host",
	} {
		r, err := request.Read("GET", in, "/", nil)
		if err != nil || r.Authority() != want {
			t.Errorf("%q: %q, %v, want %q", in, r.Authority(), err, want)
		}
	}
	for _, in := range []string{
		"", ".", "a..b", ".a", "a..", "u@a", "a:", "a:0", "a:080", "a:65536", "a:x", "a:1:2", "a,b", "a b", "a/b", "a%41", "[::1", "::1", "[::1]x", "[fe80::1%25eth0]", "[1.2.3.4]", "é", strings.Repeat("a", 254),
	} {
		if r, err := request.Read("GET", in, "/", nil); !errors.Is(err, request.ErrAmbiguous) {
			t.Errorf("%q: %q, %v", in, r.Host, err)
		}
	}
}

// RFC 9112 section 3.2.
func TestTargets(t *testing.T) {
	for _, c := range []struct{ method, host, target, want string }{
		{"GET", "a", "/x?y=%2F;z", "/x?y=%2F;z"}, {"GET", "a", "/x?", "/x?"}, {"OPTIONS", "a", "*", "*"},
		{"GET", "a:81", "http://A:81/x/../y?z", "/y?z"}, {"GET", "a", "http://a:80/", "/"}, {"GET", "a", "HTTP://a", "/"}, {"GET", "a", "http://a?b", "/?b"},
	} {
		r, err := request.Read(c.method, c.host, c.target, nil)
		if err != nil || r.Target() != c.want {
			t.Errorf("%v: %q, %v", c, r.Target(), err)
		}
	}
	for _, c := range []struct{ method, host, target string }{
		{"GET", "a", "*"}, {"GET", "a", "http://b/"}, {"GET", "a", "http://u@a/"}, {"GET", "a", "https://a/"}, {"GET", "a", "ftp://a/"}, {"GET", "a", "a:80"}, {"CONNECT", "a", "a:80"},
		{"G T", "a", "/"}, {"", "a", "/"}, {"GET", "a", "/?\x00"}, {"GET", "a", "/?a#b"}, {"GET", "a", "/?a b"}, {"GET", "a", "/" + strings.Repeat("a", 17<<10)},
	} {
		if r, err := request.Read(c.method, c.host, c.target, nil); !errors.Is(err, request.ErrAmbiguous) {
			t.Errorf("%.40q: %q, %v", c, r.Target(), err)
		}
	}
}

// What means the same (RFC 3986 section 6.2, RFC 9110 section 4.2.3) is read as the same,
// or not at all, however it is spelt; and what does not is not.
func TestEqualMeaningsHaveOneForm(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	read, refused := 0, 0
	for range 20000 {
		var segments, spelt []string
		for range 1 + random.IntN(4) {
			segment := ""
			for range 1 + random.IntN(4) {
				segment += pick("a", "B", "7", "~", "-", "_", ".x", "%25", "%C3%A9", "%3F", "!", "@", "=", "%7B")
			}
			segments = append(segments, segment)
			for random.IntN(3) == 0 { // what goes away
				spelt = append(spelt, pick("", ".", "%2e", "x/..", "x/y/../%2E%2e", "//.", "%2E/"))
			}
			spelt = append(spelt, respell(random, segment))
		}
		want, end := "/"+strings.Join(segments, "/"), pick("", "/", "/.", "//", "/x/..", "/%2e/")
		if end != "" {
			want += "/"
		}
		target := "/" + strings.Join(spelt, "/") + end
		host, scheme := pick("cart.shop", "CART.Shop", "cart.shop.", "cart.shop:80", "Cart.shop.:80"), pick("", "", "http://", "HTTP://")
		if scheme != "" {
			target = scheme + pick("cart.shop", "cart.SHOP.", "cart.shop:80") + target
		}
		if random.IntN(10) == 0 { // what others may read in another way
			target += pick(";x", "%2f", "\\", "%00", "%252e", "/../../../../../../../..", "#", " ", "%")
		}
		r, err := request.Read("GET", host, target, nil)
		if errors.Is(err, request.ErrAmbiguous) {
			refused++
			continue
		}
		read++
		if err != nil || r.Path != want || r.Authority() != "cart.shop" {
			t.Fatalf("%q of %q is %+v, %v, want %q", target, host, r, err, want)
		}
		if again, err := request.Path(r.Path); err != nil || again != r.Path {
			t.Fatalf("%q becomes %q, %v", r.Path, again, err)
		}
	}
	if read < 15000 || refused < 500 {
		t.Errorf("%d read, %d refused: too few of one kind to say anything", read, refused)
	}
}

// respell writes a segment in another way that means the same.
func respell(random *rand.Rand, segment string) (out string) {
	for i := 0; i < len(segment); i++ {
		c := segment[i]
		switch {
		case c == '%' && random.IntN(2) == 0:
			out += strings.ToLower(segment[i : i+3])
			i += 2
		case c == '%':
			out += segment[i : i+3]
			i += 2
		case !strings.ContainsRune("!@=", rune(c)) && random.IntN(4) == 0: // those mean something else when they are encoded
			out += fmt.Sprintf([]string{"%%%02x", "%%%02X"}[random.IntN(2)], c)
		default:
			out += string(c)
		}
	}
	return strings.ReplaceAll(out, "%7b", []string{"{", "%7b"}[random.IntN(2)])
}

// FuzzRead: what is read is read as the same again, has nothing in it that the package
// excludes, and means to net/url what it means here.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"/", "/a/../b?c", "/%2e%2e/", "//a%2F", "/%c3%a9;", "http://a/b", "*", "/{*}/a%25"} {
		f.Add("GET", "a.b:80", s)
	}
	f.Fuzz(func(t *testing.T, method, host, target string) {
		r, err := request.Read(method, host, target, nil)
		if err != nil {
			return
		}
		again, err := request.Read(r.Method, r.Authority(), r.Target(), nil)
		if err != nil || again.Host != r.Host || again.Port != r.Port || again.Path != r.Path || again.Query != r.Query {
			t.Fatalf("%+v is read as %+v, %v", r, again, err)
		}
		if r.Path == "*" {
			return
		}
		if strings.ContainsAny(r.Path, "?#\\;\" <>^`{|}") || strings.Contains(r.Path, "//") || strings.Contains(r.Path+"/", "/./") || strings.Contains(r.Path+"/", "/../") {
			t.Fatalf("%q is no normal form", r.Path)
		}
		u, err := url.ParseRequestURI(r.Target())
		if err != nil || u.EscapedPath() != r.Path || u.Host != "" {
			t.Fatalf("net/url reads %q as %+v, %v", r.Target(), u, err)
		}
	})
}

func TestPlainPathsAllocateNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if _, err := request.Read("GET", "cart.shop:80", "/api/v1/cart?id=1", nil); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
