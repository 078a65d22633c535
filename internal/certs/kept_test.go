package certs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// locker is a folder that outlives stores.
type locker struct {
	mu      sync.Mutex
	secrets map[string][]byte
}

func newLocker() *locker { return &locker{secrets: make(map[string][]byte)} }

func (l *locker) Load(name string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.secrets[name]
}

func (l *locker) Save(name string, secret []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets[name] = secret
}

func (l *locker) Remove(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.secrets, name)
}

func (l *locker) Retain(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.secrets, func(name string, _ []byte) bool { return !slices.Contains(names, name) })
}

var errDown = errors.New("the CA is down")

func down(context.Context, spiffe.ID, []byte) ([]string, error) { return nil, errDown }

// process is one life of a store over a locker.
func process(t *testing.T, c certs.Config, live func(*certs.Store)) {
	t.Helper()
	c.Logger = slog.New(slog.DiscardHandler)
	s := certs.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	live(s)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func serialOf(t *testing.T, s *certs.Store, id spiffe.ID) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	certificate, err := s.Get(ctx, id)
	if err != nil {
		return ""
	}
	return certificate.Leaf.SerialNumber.String()
}

func TestTheNextProcessNeedsNoCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web, kept := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), newLocker()
		var before string
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: kept}, func(s *certs.Store) {
			s.Want(web)
			before = serialOf(t, s, web)
			s.RetainKept()
		})
		var asked atomic.Int32
		process(t, certs.Config{Bundle: ca.Bundle, Locker: kept, Fetch: func(context.Context, spiffe.ID, []byte) ([]string, error) {
			asked.Add(1)
			return nil, errDown
		}}, func(s *certs.Store) {
			s.Want(web)
			time.Sleep(12 * time.Hour) // before two thirds of its life
			if got := serialOf(t, s, web); got != before || before == "" {
				t.Errorf("certificate %q, kept was %q", got, before)
			}
			if n := asked.Load(); n > 0 {
				t.Errorf("the CA was asked %d times for what was there", n)
			}
			time.Sleep(7 * time.Hour)
			if asked.Load() == 0 {
				t.Error("not renewed at two thirds of its life")
			}
			if got := serialOf(t, s, web); got != before {
				t.Error("not used until its end")
			}
			time.Sleep(6 * time.Hour)
			if got := serialOf(t, s, web); got != "" {
				t.Error("used after its end")
			}
		})
		if kept.Load(web.String()) != nil {
			t.Error("an ended certificate is still kept")
		}
	})
}

func TestWhatIsKeptIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
		web, till := id(t, "shop", "web"), id(t, "shop", "till")
		good := newLocker()
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: good}, func(s *certs.Store) {
			s.Want(web)
			s.Want(till)
			serialOf(t, s, web)
			serialOf(t, s, till)
		})
		secret := good.Load(web.String())
		lines := bytes.SplitAfter(good.Load(till.String()), []byte("-----END PRIVATE KEY-----\n"))
		own := bytes.SplitAfter(secret, []byte("-----END PRIVATE KEY-----\n"))
		for name, c := range map[string]struct {
			secret []byte
			bundle func() []*x509.Certificate
			later  time.Duration
			stays  bool
		}{
			"of another identity":  {secret: good.Load(till.String())},
			"with another's key":   {secret: append(bytes.Clone(lines[0]), own[1]...)},
			"without a key":        {secret: own[1]},
			"without certificates": {secret: own[0]},
			"garbage":              {secret: []byte("garbage")},
			"torn":                 {secret: secret[:len(secret)/2]},
			"of another root":      {secret: secret, bundle: other.Bundle, stays: true},
			"no root known":        {secret: secret, bundle: func() []*x509.Certificate { return nil }, stays: true},
			"ended":                {secret: secret, later: 25 * time.Hour},
		} {
			kept := newLocker()
			kept.Save(web.String(), c.secret)
			bundle := ca.Bundle
			if c.bundle != nil {
				bundle = c.bundle
			}
			time.Sleep(c.later)
			process(t, certs.Config{Fetch: down, Bundle: bundle, Locker: kept}, func(s *certs.Store) {
				s.Want(web)
				if got := serialOf(t, s, web); got != "" {
					t.Errorf("%s: used", name)
				}
			})
			if stayed := kept.Load(web.String()) != nil; stayed != c.stays {
				t.Errorf("%s: stayed %v, want %v", name, stayed, c.stays)
			}
			if c.later > 0 {
				return // the clock has moved on for all others
			}
		}
	})
}

func TestACertificateFromBeforeTheClockWasSetBackWaits(t *testing.T) {
	var ca *certstest.CA
	web, kept := id(t, "shop", "web"), newLocker()
	synctest.Test(t, func(t *testing.T) {
		ca = certstest.NewCA(t, "cluster.local")
		time.Sleep(time.Hour)
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: kept}, func(s *certs.Store) {
			s.Want(web)
			serialOf(t, s, web)
		})
	})
	synctest.Test(t, func(t *testing.T) { // the clock begins anew, an hour earlier
		process(t, certs.Config{Fetch: down, Bundle: ca.Bundle, Locker: kept}, func(s *certs.Store) {
			s.Want(web)
			if serialOf(t, s, web) != "" {
				t.Error("used before it begins")
			}
			time.Sleep(2 * time.Hour)
			if serialOf(t, s, web) == "" {
				t.Error("not used once it had begun")
			}
		})
	})
}

func TestAnIdentityThatIsGoneLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web, till, kept := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), id(t, "shop", "till"), newLocker()
		kept.Save(till.String(), []byte("of a pod that went while nobody looked"))
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: kept}, func(s *certs.Store) {
			s.Want(web)
			before := serialOf(t, s, web)
			s.RetainKept()
			if kept.Load(till.String()) != nil {
				t.Error("an identity that no pod here has is still kept")
			}
			// A pod that is replaced finds it again, without the CA.
			s.Forget(web)
			if serialOf(t, s, web) != "" {
				t.Error("given out to nobody's pod")
			}
			time.Sleep(5 * time.Minute)
			s.Want(web)
			if got := serialOf(t, s, web); got != before {
				t.Errorf("certificate %q, before %q", got, before)
			}
			s.Forget(web)
			time.Sleep(9 * time.Minute)
			if kept.Load(web.String()) == nil {
				t.Error("gone too soon")
			}
			time.Sleep(2 * time.Minute)
			if kept.Load(web.String()) != nil {
				t.Error("kept though no pod has it any more")
			}
			s.Want(web)
			if got := serialOf(t, s, web); got == before || got == "" {
				t.Errorf("certificate %q is not a new one", got)
			}
		})
	})
}

// The end of the process forgets no identity: the next one wants it.
func TestTheEndOfTheProcessKeepsWhatThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web, kept := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), newLocker()
		var s *certs.Store
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: kept}, func(running *certs.Store) {
			s = running
			s.Want(web)
			serialOf(t, s, web)
		})
		s.Forget(web) // as draining pods do, after Run
		time.Sleep(time.Hour)
		if kept.Load(web.String()) == nil {
			t.Error("draining took the kept certificate along")
		}
	})
}

// What was dropped while in use, such as below a root that is trusted no more, is
// not taken from the locker again, even if it would be accepted by then.
func TestWhatWasDroppedDoesNotComeBackFromTheLocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other, web, kept := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), newLocker()
		var distrusted, away atomic.Bool
		bundle := func() []*x509.Certificate {
			if distrusted.Load() {
				return other.Bundle()
			}
			return ca.Bundle()
		}
		fetch := func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
			if away.Load() {
				return nil, errDown
			}
			return ca.Fetch(ctx, id, csr)
		}
		process(t, certs.Config{Fetch: fetch, Bundle: bundle, Locker: kept}, func(s *certs.Store) {
			s.Want(web)
			if serialOf(t, s, web) == "" {
				t.Fatal("no certificate")
			}
			away.Store(true)
			distrusted.Store(true)
			s.BundleChanged()
			time.Sleep(time.Minute)
			distrusted.Store(false)
			s.BundleChanged()
			if got := serialOf(t, s, web); got != "" {
				t.Error("it is back")
			}
			if kept.Load(web.String()) != nil {
				t.Error("the next process would use it")
			}
			away.Store(false)
			time.Sleep(5 * time.Minute)
			if serialOf(t, s, web) == "" {
				t.Error("none is fetched")
			}
		})
	})
}
