package endpoints

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// world is a Registry whose time stands still unless it is told.
type world struct {
	*Registry
	t       testing.TB
	time    time.Time
	metrics *prometheus.Registry
	log     bytes.Buffer
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, time: time.Unix(1_000_000_000, 0), metrics: prometheus.NewRegistry()}
	w.Registry = New(Config{
		Registerer: w.metrics, Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
		Now: func() time.Time { return w.time },
	})
	return w
}

func (w *world) pass(d time.Duration) { w.time = w.time.Add(d) }

// key of the endpoint with a number.
func key(i int) Key {
	return Key{fmt.Sprint("Kubernetes//Pod/shop/e", i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080)}
}

// keys of n endpoints, which are a service.
func keys(n int) func() []Key {
	return func() (all []Key) {
		for i := range n {
			all = append(all, key(i))
		}
		return all
	}
}

func (w *world) connect(k Key) *Lease {
	w.t.Helper()
	l, ok := w.Connect(k, false)
	if !ok {
		w.t.Fatalf("%s is kept out", k.UID)
	}
	return l
}

// fail fails n connections to k, one after the other.
func (w *world) fail(k Key, n int, peers func() []Key) {
	w.t.Helper()
	for range n {
		w.connect(k).Failed("ConnectFailed", peers)
	}
}

func (w *world) succeed(k Key) {
	w.t.Helper()
	l := w.connect(k)
	l.Established()
	l.End()
}

func (w *world) wantEjected(k Key, want bool) {
	w.t.Helper()
	if got := w.Ejected(k.UID, k.Target); got != want {
		w.t.Errorf("ejected %t, want %t: %+v", got, want, w.Statuses())
	}
}

func TestLoadIsTheConnectionsThatLiveOrAreBeingEstablished(t *testing.T) {
	w := newWorld(t)
	a, b := w.connect(key(0)), w.connect(key(0))
	other := w.connect(key(1))
	want := func(want int) {
		t.Helper()
		if got := w.Load(key(0).UID, key(0).Target); got != want {
			t.Errorf("load %d, want %d", got, want)
		}
	}
	want(2)
	a.Established()
	want(2)
	a.End()
	a.End()
	want(1)
	b.End()
	want(0)
	other.End()
	if all := w.Statuses(); len(all) != 0 {
		t.Errorf("remembered without a reason: %+v", all)
	}
}

// The same workload at another port, or address, is another endpoint.
func TestAnEndpointIsAWorkloadAndItsTarget(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), Threshold, keys(2))
	w.wantEjected(key(0), true)
	w.wantEjected(Key{key(0).UID, netip.AddrPortFrom(key(0).Target.Addr(), 9090)}, false)
	w.wantEjected(Key{key(0).UID, key(1).Target}, false)
}

// Whoever refuses at once has few connections: without its failures in its load
// it would be chosen before all others.
func TestFailuresWeighLikeConnections(t *testing.T) {
	w := newWorld(t)
	w.fail(key(0), 3, keys(2))
	if got := w.Load(key(0).UID, key(0).Target); got != 3 {
		t.Errorf("load %d after three failures", got)
	}
	w.pass(baseEjection)
	if got := w.Load(key(0).UID, key(0).Target); got != 0 {
		t.Errorf("load %d some time after them: it would never be tried again", got)
	}
}

// Whatever happens to the endpoints of a service: no more than half of them are
// ejected, no load is lost or left, and with time all is forgotten.
func TestInvariantsUnderAnySequence(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		n := 1 + random.IntN(8)
		var open []*Lease
		loads := map[Key]int{}
		end := func(i int, how func(*Lease)) {
			l := open[i]
			open = append(open[:i], open[i+1:]...)
			loads[l.key]--
			how(l)
		}
		for range 3000 {
			k := key(random.IntN(n))
			switch do := random.IntN(12); {
			case do < 4:
				if l, ok := w.Connect(k, false); ok {
					open = append(open, l)
					loads[k]++
				} else if !w.Ejected(k.UID, k.Target) {
					t.Fatal("kept out, and not ejected")
				}
			case do == 4 && len(open) > 0:
				open[random.IntN(len(open))].Established()
			case do == 5:
				w.pass(time.Duration(random.Int64N(int64(baseEjection))))
			case do < 9 && len(open) > 0:
				end(random.IntN(len(open)), func(l *Lease) { l.Failed("ConnectFailed", keys(n)) })
			case do < 11 && len(open) > 0:
				end(random.IntN(len(open)), (*Lease).End)
			}
			ejected := 0
			for i := range n {
				if k := key(i); w.Ejected(k.UID, k.Target) {
					ejected++
				}
			}
			if ejected > n/2 {
				t.Fatalf("seed %d: %d of %d are ejected", seed, ejected, n)
			}
			w.mu.Lock()
			distrusted, idle := 0, 0
			for k, e := range w.all {
				if e.active != loads[k] {
					t.Fatalf("seed %d: %s has load %d, want %d", seed, k.UID, e.active, loads[k])
				}
				if e.distrusted {
					distrusted++
				}
				if e.active == 0 {
					idle++
				}
			}
			if int64(distrusted) != w.distrusted.Load() || idle != w.idle {
				t.Fatalf("seed %d: counted %d distrusted and %d idle, are %d and %d", seed, w.distrusted.Load(), w.idle, distrusted, idle)
			}
			w.mu.Unlock()
		}
		for len(open) > 0 {
			end(0, (*Lease).End)
		}
		w.pass(2 * memory)
		w.succeed(key(100)) // somebody has to be there for what is over to be noticed
		if all := w.Statuses(); len(all) != 0 || w.distrusted.Load() != 0 || w.idle != 0 {
			t.Fatalf("seed %d: remembered: %+v", seed, all)
		}
	}
}

func TestWhatHasNoConnectionIsBounded(t *testing.T) {
	w := newWorld(t)
	w.maxIdle = 10
	living := w.connect(key(0))
	for i := range 50 {
		w.fail(key(1+i), 1, keys(2))
	}
	if n := len(w.Statuses()); n != 11 {
		t.Errorf("%d endpoints are known, want the ten and the one with a connection", n)
	}
	living.End()
}

// A lease that ended says no more, whoever still holds it.
func TestAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	l := w.connect(key(0))
	l.End()
	for range Threshold {
		l.Failed("ConnectFailed", keys(2))
	}
	l.Established()
	if all := w.Statuses(); len(all) != 0 || w.distrusted.Load() != 0 {
		t.Errorf("%+v", all)
	}
	var none *Lease
	none.Established()
	none.Failed("ConnectFailed", nil)
	none.End()
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 2))
			for range 2000 {
				k := key(random.IntN(4))
				w.Load(k.UID, k.Target)
				w.Ejected(k.UID, k.Target)
				l, ok := w.Connect(k, random.IntN(2) == 0)
				switch {
				case !ok:
				case random.IntN(2) == 0:
					l.Failed("ConnectFailed", keys(4))
				default:
					l.Established()
					l.End()
				}
			}
		})
	}
	group.Wait()
	for _, s := range w.Statuses() {
		if s.Connections != 0 {
			t.Errorf("left over: %+v", s)
		}
	}
}

func TestPicks(t *testing.T) {
	w := newWorld(t)
	w.Picked("zone", false)
	w.Picked("zone", true)
	w.wantMetrics(`ambit_endpoint_picks_total{locality="zone"} 2`, `ambit_endpoint_panic_picks_total 1`)
}

// wantMetrics demands lines of what is scraped.
func (w *world) wantMetrics(lines ...string) {
	w.t.Helper()
	scrape := httptest.NewRecorder()
	promhttp.HandlerFor(w.metrics, promhttp.HandlerOpts{}).ServeHTTP(scrape, httptest.NewRequest("GET", "/metrics", nil))
	text := scrape.Body.String()
	for _, line := range lines {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "{")
		if !strings.Contains(text, "\n"+line+"\n") || !strings.Contains(text, "# HELP "+name+" ") {
			w.t.Errorf("want %q, with help:\n%s", line, text)
		}
	}
}

// What the way of one connection costs here, with a thousand other endpoints.
func BenchmarkConnection(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		w.connect(key(i))
	}
	a, c := key(1), key(2)
	b.ReportAllocs()
	for b.Loop() {
		w.Ejected(a.UID, a.Target)
		w.Ejected(c.UID, c.Target)
		w.Load(a.UID, a.Target)
		w.Load(c.UID, c.Target)
		l, _ := w.Connect(a, false)
		w.Picked("zone", false)
		l.Established()
		l.End()
	}
}

// What is asked about an endpoint, while another one is ejected.
func BenchmarkLookup(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		w.connect(key(i))
	}
	w.fail(key(0), Threshold, keys(2))
	k := key(1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w.Ejected(k.UID, k.Target)
			w.Load(k.UID, k.Target)
		}
	})
}

func TestLookupsDoNotAllocate(t *testing.T) {
	w := newWorld(t)
	w.connect(key(0))
	w.fail(key(1), Threshold, keys(2))
	k := key(0)
	if n := testing.AllocsPerRun(100, func() { w.Load(k.UID, k.Target); w.Ejected(k.UID, k.Target); w.Picked("node", false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
