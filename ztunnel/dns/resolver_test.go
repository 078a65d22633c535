package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
)

// Silent resolvers are waited for in turn, and not for longer than clients wait.
func TestSilenceEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")}
		type asked struct {
			server netip.AddrPort
			after  time.Duration
		}
		began := time.Now()
		var all []asked
		answered := servers[1]
		metrics := NewMetrics(prometheus.NewRegistry())
		r := NewResolver(func() []netip.AddrPort { return servers }, metrics)
		r.ask = func(ctx context.Context, q question, server netip.AddrPort, _ bool) ([]byte, error) {
			all = append(all, asked{server, time.Since(began)})
			if server == answered {
				return reply(q.message, nil), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		p := &Proxy{slots: make(chan struct{}, 1), cfg: Config{
			Resolver: r, Metrics: metrics, Logger: slog.New(slog.DiscardHandler),
			Learn: func(Answer) {}, Direct: func(netip.AddrPort) (bool, error) { return false, nil },
		}}
		q, refused := readQuestion(ask(t, 7, "shop.example.", dnsmessage.TypeA, 0))
		if refused != nil {
			t.Fatal(refused)
		}
		if got := p.answer(t.Context(), q, addressed, false); rcode(got) != dnsmessage.RCodeSuccess {
			t.Errorf("%x", got)
		}
		if want := []asked{{servers[0], 0}, {servers[1], tryTimeout}}; !slices.Equal(all, want) {
			t.Errorf("asked %v, want %v", all, want)
		}
		began, all, answered = time.Now(), nil, netip.AddrPort{}
		if got := p.answer(t.Context(), q, addressed, false); rcode(got) != dnsmessage.RCodeServerFailure || time.Since(began) != answerTimeout {
			t.Errorf("%x after %v", got, time.Since(began))
		}
		if want := []asked{{servers[0], 0}, {servers[1], tryTimeout}, {servers[0], 2 * tryTimeout}}; !slices.Equal(all, want) {
			t.Errorf("asked %v, want %v", all, want)
		}
	})
}

func TestExchangesAreBounded(t *testing.T) {
	r := NewResolver(func() []netip.AddrPort { return nil }, NewMetrics(prometheus.NewRegistry()))
	for range maxExchanges {
		r.slots <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.resolve(ctx, question{}, r.Servers(), false); !errors.Is(err, errOverloaded) {
		t.Errorf("%v", err)
	}
	<-r.slots // which another question gives back
	if _, err := r.resolve(t.Context(), question{}, r.Servers(), false); !errors.Is(err, errNoServers) {
		t.Errorf("%v", err)
	}
}

func TestServersOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(content string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	f := NewFile(path, slog.New(slog.DiscardHandler))
	if got := f.Servers(); len(got) > 0 || !errors.Is(f.Problem(), os.ErrNotExist) {
		t.Errorf("of a missing file: %v, %v", got, f.Problem())
	}
	changed := func(content string, age time.Duration) []netip.AddrPort {
		write(content, age)
		f.mu.Lock()
		f.looked = time.Time{} // a while ago
		f.mu.Unlock()
		return f.Servers()
	}
	if got := changed("search example\nnameserver name\nnameserver 0.0.0.0\n", time.Hour); len(got) > 0 || f.Problem() == nil {
		t.Errorf("of a file without servers: %v, %v", got, f.Problem())
	}
	content := "# nameserver 192.0.2.9\nnameserver 10.96.0.10\noptions ndots:5\nnameserver fd00::a\n  nameserver  fe80::1%eth0\nnameserver 192.0.2.4\n"
	want := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00::a]:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if got := changed(content, time.Minute); !reflect.DeepEqual(got, want) || f.Problem() != nil {
		t.Errorf("%v, want %v; %v", got, want, f.Problem())
	}
	if got := changed("", 40*time.Second); !reflect.DeepEqual(got, want) || f.Problem() == nil {
		t.Errorf("of an emptied file: %v, %v", got, f.Problem())
	}
	if got := changed("nameserver 192.0.2.5", 20*time.Second); len(got) != 1 || got[0] != netip.MustParseAddrPort("192.0.2.5:53") {
		t.Errorf("of a changed file: %v", got)
	}
}
