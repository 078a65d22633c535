package jwks

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/jwt"
	"github.com/ambit-mesh/ambit/internal/jwt/jwttest"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

// In a namespace of its own every address of 10.9.0.0/16 is this machine's, and none of
// them looks so.
func TestMain(m *testing.M) { waypointtest.Main(m) }

// rig is a store, and an issuer that answers as the test wants.
type rig struct {
	*Store
	jwt.Source
	// certificate that the issuer shows.
	certificate *x509.Certificate
	// fetches that came.
	fetches atomic.Int64

	mu     sync.Mutex
	now    time.Time
	answer http.HandlerFunc
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) set(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// noMesh has no Services.
type noMesh struct{}

func (noMesh) DialService(context.Context, string, uint16, bool) (net.Conn, bool, error) {
	return nil, false, nil
}

// listen serves TLS at an address.
func listen(t *testing.T, address string, handler http.Handler) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = l
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func start(t *testing.T, answer http.HandlerFunc) *rig {
	r := &rig{now: time.Unix(1_800_000_000, 0), answer: answer}
	server := listen(t, "10.9.0.40:0", http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.fetches.Add(1)
		r.mu.Lock()
		answer := r.answer
		r.mu.Unlock()
		answer(w, q)
	}))
	roots := x509.NewCertPool()
	r.certificate = server.Certificate()
	roots.AddCert(r.certificate)
	r.Source = jwt.Source{URI: server.URL + "/keys"}
	// The certificate that httptest has is for example.com.
	r.Store = New(Config{Mesh: noMesh{}, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"}, Now: r.clock})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (r *rig) expect(t *testing.T, what, says string, fetches int64) *jwt.Keys {
	t.Helper()
	keys, err := r.Keys(t.Context(), r.Source, nil)
	if (err != nil) != (says != "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %q", what, err, says)
	}
	if got := r.fetches.Load(); fetches >= 0 && got != fetches {
		t.Errorf("%s: %d fetches, want %d", what, got, fetches)
	}
	return keys
}

func TestKeysAreKept(t *testing.T) {
	r := start(t, says(jwttest.Keys(t, jwttest.New(t, "me", "1"))))
	if _, err := r.Cached(r.Source); err == nil {
		t.Error("there are keys before they were fetched")
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { r.expect(t, "many at once", "", -1) })
	}
	all.Wait()
	r.expect(t, "afterwards", "", 1)
	r.pass(refreshEvery - time.Second)
	r.expect(t, "still fresh", "", 1)
	r.pass(time.Second)
	r.expect(t, "no longer fresh: nobody waits", "", -1)
	eventually(t, "they are fetched again", func() bool { return r.fetches.Load() == 2 })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so within 10 s: " + what)
		}
	}
}

// A token may name a key that was published just now: keys are asked for once more, and
// not again for everybody who makes up a name.
func TestUnknownKeysAreAskedForSeldom(t *testing.T) {
	old, next := jwttest.New(t, "me", "1"), jwttest.New(t, "me", "2")
	r := start(t, says(jwttest.Keys(t, old)))
	first := r.expect(t, "first", "", 1)
	r.set(says(jwttest.Keys(t, old, next)))
	if same, err := r.Keys(t.Context(), r.Source, first); same != first || err != nil || r.fetches.Load() != 1 {
		t.Errorf("asked for again at once: %d fetches, %v", r.fetches.Load(), err)
	}
	r.pass(lackingEvery)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if later, err := r.Keys(t.Context(), r.Source, first); later == first || err != nil {
				t.Errorf("the later keys do not come: %v", err)
			}
		})
	}
	all.Wait()
	second := r.expect(t, "rotated", "", 2)
	for range 100 {
		r.Keys(t.Context(), r.Source, second)
	}
	if got := r.fetches.Load(); got != 2 {
		t.Errorf("%d fetches because of names that are made up", got)
	}
}

// Without an issuer there are no keys; with the last good ones there are for a while.
func TestFailuresNeverFallBack(t *testing.T) {
	good := says(jwttest.Keys(t, jwttest.New(t, "me", "1")))
	down := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	r := start(t, down)
	r.expect(t, "down", "answered with 503", 1)
	r.expect(t, "down, right after", "answered with 503", 1)
	r.pass(firstRetry)
	r.expect(t, "down, later", "answered with 503", 2)
	r.set(good)
	r.expect(t, "back, but too early", "answered with 503", 2)
	r.pass(2 * firstRetry)
	keys := r.expect(t, "back", "", 3)
	r.set(down)
	r.pass(keepFor - time.Second)
	if last := r.expect(t, "down again", "", -1); last != keys {
		t.Error("the last good keys are gone")
	}
	eventually(t, "it was tried", func() bool { return r.fetches.Load() == 4 })
	r.pass(2 * time.Second)
	eventually(t, "the last good keys are over", func() bool {
		_, err := r.Keys(t.Context(), r.Source, nil)
		return err != nil && strings.Contains(err.Error(), "answered with 503")
	})
	if _, err := r.Cached(r.Source); err == nil {
		t.Error("keys that are over are at hand")
	}
}

// What an issuer may do, and must get nowhere with.
func TestAnswersThatAreRefused(t *testing.T) {
	keys := jwttest.Keys(t, jwttest.New(t, "me", "1"))
	elsewhere := 0
	inside := listen(t, "10.9.0.41:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		elsewhere++
		io.WriteString(w, keys)
	}))
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, to, http.StatusFound) }
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"a redirect to link-local": {redirect("http://169.254.169.254/latest/meta-data"), "redirect"},
		"a redirect to loopback":   {redirect("https://127.0.0.1/keys"), "redirect"},
		"a redirect, harmless":     {redirect(inside.URL), "redirect"},
		"not found":                {http.NotFound, "answered with 404"},
		"no content":               {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "answered with 204"},
		"a page":                   {says("<html>"), "no set of keys"},
		"no keys":                  {says(`{"keys":[]}`), "no keys"},
		"huge":                     {says(strings.Replace(keys, "{", "{"+strings.Repeat(" ", jwt.MaxKeySet), 1)), "more than"},
		"huge, and never at an end": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
		}, "more than"},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, keys)
		}, "read the answer"},
		"late": {func(_ http.ResponseWriter, q *http.Request) {
			select {
			case <-q.Context().Done():
			case <-time.After(2 * fetchTimeout):
			}
		}, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, c.answer)
			began := time.Now()
			r.expect(t, name, c.says, 1)
			if took := time.Since(began); took > fetchTimeout+2*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if elsewhere != 0 {
		t.Error("a redirect was followed")
	}
}

// Who names authorities has the issuer vouched for by these alone: neither do the public ones
// stand in for them, nor is what was fetched by the word of others theirs.
func TestPrivateAuthorities(t *testing.T) {
	r := start(t, says(jwttest.Keys(t, jwttest.New(t, "me", "1"))))
	own := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate.Raw}))
	other := listen(t, "10.9.0.42:0", says("{}"))
	elsewhere := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority(t).Raw})
	public := r.expect(t, "by the public authorities", "", 1)
	for _, c := range []struct {
		name, authority, says string
		fetches               int64
	}{
		{"another authority, as if the public ones did not know the issuer", string(elsewhere), "unknown authority", 1},
		{"the issuer's", own, "", 2},
		{"the issuer's, known", own, "", 2},
		{"both", string(elsewhere) + own, "", 3},
		{"nonsense", "nonsense", "certificate authority", 3},
	} {
		keys, err := r.Keys(t.Context(), jwt.Source{URI: r.URI, CertificateAuthority: c.authority}, nil)
		if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) || r.fetches.Load() != c.fetches {
			t.Errorf("%s: %v after %d fetches, want %q after %d", c.name, err, r.fetches.Load(), c.says, c.fetches)
		}
		if keys == public {
			t.Errorf("%s: keys by the word of the public authorities", c.name)
		}
	}
	// Nor do the private ones vouch for anybody to whom they are not named.
	r.cfg.TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
	for _, uri := range []string{r.URI + "?again", other.URL} {
		if _, err := r.Keys(t.Context(), jwt.Source{URI: uri}, nil); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// authority is a certificate that vouches for nobody here.
func authority(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Nobody's keys come from this machine, from what only it reaches, or in clear.
func TestWhereKeysMayNotComeFrom(t *testing.T) {
	r := start(t, says("{}"))
	here := listen(t, "127.0.0.1:0", says(jwttest.Keys(t, jwttest.New(t, "me", "1"))))
	clear := httptest.NewServer(says("{}"))
	defer clear.Close()
	for _, uri := range []string{
		here.URL, strings.Replace(here.URL, "127.0.0.1", "localhost", 1), strings.Replace(here.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1),
		strings.Replace(here.URL, "127.0.0.1", "0.0.0.0", 1), clear.URL, "http://10.9.0.40/", "file:///etc/passwd", "https://", "https://user@10.9.0.40/", "https:///keys",
	} {
		if _, err := r.fetch(t.Context(), jwt.Source{URI: uri}); err == nil {
			t.Errorf("keys come from %s", uri)
		} else if strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "no set of keys") {
			t.Errorf("%s was reached: %v", uri, err)
		}
	}
	for _, address := range []string{
		"127.0.0.1:443", "127.9.9.9:443", "169.254.169.254:80", "0.0.0.0:443", "224.0.0.1:443", "255.255.255.255:443", "100.100.100.200:443", "168.63.129.16:443",
		"[::1]:443", "[::]:443", "[fe80::1]:443", "[fe80::1%lo]:443", "[ff02::1]:443", "[fd00:ec2::254]:443", "[::ffff:169.254.169.254]:443", "[::127.0.0.1]:443",
		"[64:ff9b::a9fe:a9fe]:443", "[64:ff9b::7f00:1]:443", "[2002:7f00:1::]:443", "[2002:a9fe:a9fe::1]:443", "nonsense",
	} {
		if checkAddress(address) == nil {
			t.Errorf("%s may be connected to", address)
		}
	}
	for _, address := range []string{"10.9.0.40:443", "192.0.2.1:443", "[2001:db8::1]:443", "[64:ff9b::c000:201]:443"} {
		if err := checkAddress(address); err != nil {
			t.Error(err)
		}
	}
}

// FuzzCheckAddress: an address is judged the same in whatever form of IPv6 it comes, and
// what a form stands for that has no such address in it is judged by itself.
func FuzzCheckAddress(f *testing.F) {
	for _, a := range []string{"127.0.0.1", "169.254.169.254", "10.9.0.40", "100.100.100.200", "0.0.0.1", "224.0.0.1", "255.255.255.255", "168.63.129.16", "192.0.0.192", "1.1.1.1"} {
		b := netip.MustParseAddr(a).As4()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		a, ok := netip.AddrFromSlice(in)
		if !ok {
			return
		}
		err := checkAddress(netip.AddrPortFrom(a, 443).String())
		if (a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast()) && err == nil {
			t.Fatalf("%s may be connected to", a)
		}
		if !a.Is4() {
			return
		}
		b := a.As4()
		for _, form := range []string{"::ffff:%x%02x:%x%02x", "64:ff9b::%x%02x:%x%02x", "64:ff9b:1::%x%02x:%x%02x", "2002:%x%02x:%x%02x::1"} {
			disguised := fmt.Sprintf("["+form+"]:443", b[0], b[1], b[2], b[3])
			if got := checkAddress(disguised); (got == nil) != (err == nil) {
				t.Fatalf("%s is judged %v, and %s %v", disguised, got, a, err)
			}
		}
	})
}

// mesh has one Service.
type mesh struct {
	address string
	err     error
	plain   []bool
}

func (m *mesh) DialService(ctx context.Context, host string, _ uint16, plain bool) (net.Conn, bool, error) {
	if host != "issuer.auth.svc.cluster.local" {
		return nil, false, nil
	}
	m.plain = append(m.plain, plain)
	if m.err != nil {
		return nil, true, m.err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.address)
	return conn, true, err
}

// A Service is reached through the mesh, and not in another way if that fails.
func TestServicesAreReachedThroughTheMesh(t *testing.T) {
	r := start(t, says("{}"))
	clear := httptest.NewServer(says(jwttest.Keys(t, jwttest.New(t, "me", "1"))))
	defer clear.Close()
	m := &mesh{address: clear.Listener.Addr().String()}
	r.cfg.Mesh = m
	const uri = "http://issuer.auth.svc.cluster.local/keys"
	if _, err := r.fetch(t.Context(), jwt.Source{URI: uri}); err != nil {
		t.Error(err)
	}
	m.err = errors.New("takes no tunnels")
	if _, err := r.fetch(t.Context(), jwt.Source{URI: uri}); !errors.Is(err, m.err) {
		t.Error(err)
	}
	if got := fmt.Sprint(m.plain); got != "[true true]" {
		t.Error(got)
	}
}

// Those who want too much get nothing; what nobody wants any more makes room.
func TestSourcesAreBounded(t *testing.T) {
	r := start(t, says("{}"))
	for i := range maxSources {
		r.mu.Lock()
		now := r.now
		r.mu.Unlock()
		r.Store.mu.Lock()
		r.entries[jwt.Source{URI: fmt.Sprint(i)}] = &entry{asked: now}
		r.Store.mu.Unlock()
	}
	r.expect(t, "one too many", "others are wanted", 0)
	r.pass(keepFor)
	r.expect(t, "later", "no keys", 1)
}
