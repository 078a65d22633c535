package certs_test

import (
	"context"
	"crypto/x509"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// rotation is a store between two roots, both of which are trusted; the first one signs.
type rotation struct {
	*certs.Store
	after    *certstest.CA
	signer   atomic.Pointer[certstest.CA]
	retiring atomic.Pointer[[]string]
}

func rotating(t *testing.T) *rotation {
	t.Helper()
	before, after := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
	r := &rotation{after: after}
	r.signer.Store(before)
	r.retiring.Store(&[]string{})
	r.Store = store(t, certs.Config{
		Fetch: func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
			return r.signer.Load().Fetch(ctx, id, csr)
		},
		Bundle:   func() []*x509.Certificate { return append(before.Bundle(), after.Bundle()...) },
		Retiring: func() []string { return *r.retiring.Load() },
	})
	return r
}

// succeed has the second root sign.
func (r *rotation) succeed() { r.signer.Store(r.after) }

// retire has roots retire.
func (r *rotation) retire(roots []string) {
	r.retiring.Store(&roots)
	r.BundleChanged()
}

// What chains to a root that retires is replaced within seconds, and used
// meanwhile; what does not is left alone.
func TestARootThatRetiresHasItsCertificatesReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, web := rotating(t), id(t, "shop", "web")
		s.Want(web)
		first, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		old := s.Roots()
		if len(old) != 1 {
			t.Fatalf("roots %v", old)
		}
		s.succeed()
		s.BundleChanged()
		time.Sleep(time.Minute)
		if now, _ := s.Get(t.Context(), web); now != first {
			t.Fatal("replaced though nothing retires")
		}
		s.retire(old)
		if now, err := s.Get(t.Context(), web); err != nil || now != first {
			t.Errorf("the old one is not used until there is another: %v", err)
		}
		time.Sleep(time.Minute)
		if now := s.Roots(); len(now) != 1 || now[0] == old[0] {
			t.Errorf("after a minute: %v", now)
		}
	})
}

// What is held back for pods that may come again does not keep a root in use that retires: nobody would renew it.
func TestARootThatRetiresIsNotKeptByPodsThatAreGone(t *testing.T) {
	for name, early := range map[string]bool{"gone before": true, "gone since": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, web := rotating(t), id(t, "shop", "web")
				s.Want(web)
				if _, err := s.Get(t.Context(), web); err != nil {
					t.Fatal(err)
				}
				old := s.Roots()
				if early {
					s.Forget(web)
				}
				s.succeed()
				s.retire(old)
				if !early {
					s.Forget(web)
				}
				if now := s.Roots(); !slices.Equal(now, old) {
					t.Errorf("roots %v at once, want %v: its tunnels may be there for a moment", now, old)
				}
				time.Sleep(10 * time.Second)
				if now := s.Roots(); len(now) != 0 {
					t.Errorf("roots %v are in use by nobody", now)
				}
				s.Want(web) // it comes again
				if now, err := s.Get(t.Context(), web); err != nil || slices.Equal(s.Roots(), old) {
					t.Errorf("it comes again: %v, %v, below %v", now != nil, err, s.Roots())
				}
			})
		})
	}
}
