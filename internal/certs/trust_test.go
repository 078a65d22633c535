package certs_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func shown(certificate tls.Certificate) certs.Proof {
	state := tls.ConnectionState{}
	for _, der := range certificate.Certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			panic(err)
		}
		state.PeerCertificates = append(state.PeerCertificates, parsed)
	}
	return certs.Proof{State: state, At: time.Now()}
}

// A later proof of the same peer makes up for a root that has gone and a certificate
// that has ended, and for nothing that is revoked.
func TestWhatALaterProofMakesUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next, stranger := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
		between := old.Intermediate()
		web := id(t, "shop", "web")
		long, short, below, renewed, foreign := shown(old.Issue(web, time.Hour)), shown(old.Issue(web, time.Minute)),
			shown(between.Issue(web, time.Hour)), shown(next.Issue(web, time.Hour)), shown(stranger.Issue(web, time.Hour))
		var bundle atomic.Pointer[[]*x509.Certificate]
		var revoked revocations
		s := store(t, certs.Config{Fetch: old.Fetch, Bundle: func() []*x509.Certificate { return *bundle.Load() }, Revoked: revoked.Load})
		both, former, latter := append(old.Bundle(), next.Bundle()...), old.Bundle(), next.Bundle()
		for name, c := range map[string]struct {
			roots       []*x509.Certificate
			own, latest certs.Proof
			after       time.Duration
			revoke      func()
			trusted     bool
		}{
			"the root stands":                     {roots: former, own: long, latest: long, trusted: true},
			"the root has gone":                   {roots: latter, own: long, latest: long},
			"it has gone, and another was shown":  {roots: latter, own: long, latest: renewed, trusted: true},
			"and what was shown is unknown":       {roots: latter, own: long, latest: foreign},
			"the end is near":                     {roots: both, own: short, latest: short, after: time.Minute + certs.DefaultTolerance - time.Second, trusted: true},
			"it has ended":                        {roots: both, own: short, latest: short, after: time.Minute + certs.DefaultTolerance + time.Second},
			"it has ended, and another was shown": {roots: both, own: short, latest: renewed, after: 30 * time.Minute, trusted: true},
			"and that has ended as well":          {roots: both, own: short, latest: renewed, after: time.Hour + certs.DefaultTolerance + time.Second},
			"an earlier end of the later proof":   {roots: both, own: long, latest: short, after: 30 * time.Minute, trusted: true},
			"revoked":                             {roots: both, own: long, latest: renewed, revoke: func() { revoked.certificate(t, old.Certificate(), revocation.SerialOf(long.State.PeerCertificates[0])) }},
			"revoked by its authority":            {roots: both, own: below, latest: renewed, revoke: func() { revoked.certificate(t, old.Certificate(), revocation.SerialOf(between.Certificate())) }},
			"revoked, and its root has gone": {roots: latter, own: below, latest: renewed, revoke: func() {
				revoked.certificate(t, between.Certificate(), revocation.SerialOf(below.State.PeerCertificates[0]))
			}},
			"the later proof's certificate revoked": {roots: latter, own: long, latest: renewed, revoke: func() {
				revoked.certificate(t, next.Certificate(), revocation.SerialOf(renewed.State.PeerCertificates[0]))
			}},
		} {
			bundle.Store(&c.roots)
			revoked.Store(nil)
			if c.revoke != nil {
				c.revoke()
			}
			judge := s
			if c.after > 0 {
				judge = certs.New(certs.Config{Bundle: func() []*x509.Certificate { return c.roots }, Now: func() time.Time { return time.Now().Add(c.after) }})
			}
			again, err := judge.Trusts(c.own, c.latest)
			if (err == nil) != c.trusted {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil && again <= 0 {
				t.Errorf("%s: to be asked again after %s", name, again)
			}
			if c.revoke != nil && !errors.Is(err, revocation.ErrRevoked) {
				t.Errorf("%s: %v, want that it is revoked", name, err)
			}
		}
	})
}

// A root below which there are no certificates any more is told of for as long as
// tunnels need to be made anew.
func TestARootIsToldOfUntilTunnelsAreMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
		sum := sha256.Sum256(old.Certificate().Raw)
		former := hex.EncodeToString(sum[:])
		var signs atomic.Pointer[certstest.CA]
		var retiring atomic.Pointer[[]string]
		signs.Store(old)
		retiring.Store(new([]string))
		s := store(t, certs.Config{
			Fetch: func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
				return signs.Load().Fetch(ctx, id, csr)
			},
			Bundle:   func() []*x509.Certificate { return append(old.Bundle(), next.Bundle()...) },
			Retiring: func() []string { return *retiring.Load() },
		})
		web := id(t, "shop", "web")
		s.Want(web)
		first, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if before := shown(*first); s.Retires(before) {
			t.Error("it retires before anything does")
		}
		signs.Store(next)
		retiring.Store(&[]string{former})
		if before := shown(*first); !s.Retires(before) {
			t.Error("it does not retire")
		}
		changed := s.TrustChanged()
		s.BundleChanged()
		<-changed
		changed = s.TrustChanged()
		<-changed // the certificate has been replaced: whoever carries tunnels is told
		if now, err := s.Get(t.Context(), web); err != nil || s.Retires(shown(*now)) {
			t.Errorf("the certificate still retires, or %v", err)
		}
		if !slices.Contains(s.Roots(), former) {
			t.Error("the former root is not told of any more, at once")
		}
		time.Sleep(6 * time.Second)
		if slices.Contains(s.Roots(), former) {
			t.Error("the former root is still told of")
		}
	})
}
