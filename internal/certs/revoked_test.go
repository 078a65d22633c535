package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// revocations is a list that changes.
type revocations struct {
	atomic.Pointer[revocation.List]
}

func (r *revocations) certificate(t *testing.T, issuer *x509.Certificate, serial string) {
	t.Helper()
	l, err := revocation.New([]revocation.Certificate{{Issuer: revocation.KeyID(issuer), Serial: serial}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Store(l)
}

func (r *revocations) identity(t *testing.T, id spiffe.ID, before time.Time) {
	t.Helper()
	l, err := revocation.New(nil, []revocation.Identity{{ID: id, BegunBefore: before}})
	if err != nil {
		t.Fatal(err)
	}
	r.Store(l)
}

// Whoever shows a revoked certificate is refused, as a client and as a server, and
// so is whoever has one below a revoked authority; others are not.
func TestRevokedPeersAreRefusedBothWays(t *testing.T) {
	ca := certstest.NewCA(t, "cluster.local")
	between := ca.Intermediate()
	web, till := id(t, "shop", "web"), id(t, "shop", "till")
	leaked, below, good := ca.Issue(web, time.Hour), between.Issue(web, time.Hour), ca.Issue(web, time.Hour)
	var revoked revocations
	s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Revoked: revoked.Load})
	s.Want(till)
	shows := func(certificate tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAnyClientCert}
	}
	accepted := func(certificate tls.Certificate) (client, server bool) {
		_, err := handshake(t, shows(certificate), s.ServerConfig(till))
		clientErr, _ := handshake(t, s.ClientConfig(till, web), shows(certificate))
		return err == nil, clientErr == nil
	}
	for name, c := range map[string]struct {
		revoke func()
		shown  tls.Certificate
		want   bool
	}{
		"nothing is revoked":                 {func() { revoked.Store(nil) }, leaked, true},
		"its certificate is":                 {func() { revoked.certificate(t, ca.Certificate(), revocation.SerialOf(leaked.Leaf)) }, leaked, false},
		"another one of its identity is":     {func() { revoked.certificate(t, ca.Certificate(), revocation.SerialOf(leaked.Leaf)) }, good, true},
		"the authority above it is":          {func() { revoked.certificate(t, ca.Certificate(), revocation.SerialOf(between.Certificate())) }, below, false},
		"an authority beside it is":          {func() { revoked.certificate(t, ca.Certificate(), revocation.SerialOf(between.Certificate())) }, good, true},
		"its identity is, before it":         {func() { revoked.identity(t, web, leaked.Leaf.NotBefore) }, leaked, true},
		"its identity is, with it":           {func() { revoked.identity(t, web, leaked.Leaf.NotBefore.Add(time.Second)) }, leaked, false},
		"another identity is":                {func() { revoked.identity(t, id(t, "shop", "bank"), time.Now().Add(time.Hour)) }, leaked, true},
		"the number, of an unknown issuer's": {func() { revoked.certificate(t, leaked.Leaf, revocation.SerialOf(leaked.Leaf)) }, leaked, true},
	} {
		t.Run(name, func(t *testing.T) {
			c.revoke()
			if client, server := accepted(c.shown); client != c.want || server != c.want {
				t.Errorf("accepted as a client: %v, as a server: %v; want %v", client, server, c.want)
			}
		})
	}
}

// A session of before a revocation is not resumed after it: none is at all.
func TestSessionsAreNotResumed(t *testing.T) {
	ca, web, till := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), id(t, "shop", "till")
	leaked := ca.Issue(web, time.Hour)
	var revoked revocations
	s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Revoked: revoked.Load})
	s.Want(till)
	server := s.ServerConfig(till)
	var resumed atomic.Bool
	client := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{leaked}, ServerName: "till",
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
		VerifyConnection:   func(state tls.ConnectionState) error { resumed.Store(state.DidResume); return nil },
	}
	for range 2 {
		if clientErr, serverErr := handshake(t, client, server); clientErr != nil || serverErr != nil {
			t.Fatal(clientErr, serverErr)
		}
		if resumed.Load() {
			t.Error("the session was resumed")
		}
	}
	revoked.certificate(t, ca.Certificate(), revocation.SerialOf(leaked.Leaf))
	if _, serverErr := handshake(t, client, server); serverErr == nil || !strings.Contains(serverErr.Error(), "revoked") {
		t.Errorf("with the tickets of before: %v", serverErr)
	}
}

// Our own certificate that is revoked is replaced at once, and not used until then;
// what the CA answers is refused if it is revoked as well.
func TestOurOwnRevokedCertificateIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		var revoked revocations
		s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Revoked: revoked.Load})
		s.Want(web)
		first, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		revoked.certificate(t, ca.Certificate(), revocation.SerialOf(first.Leaf))
		trust := s.TrustChanged()
		s.BundleChanged()
		select {
		case <-trust:
		default:
			t.Error("nobody who carries tunnels is told")
		}
		began := time.Now()
		second, err := s.Get(t.Context(), web)
		if err != nil || second.Leaf.Equal(first.Leaf) {
			t.Fatalf("after the revocation: %v, or the same one", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("replaced after %s", took)
		}
		// The same by identity: one that began too early is no answer.
		time.Sleep(time.Minute)
		revoked.identity(t, web, time.Now().Add(10*time.Second))
		s.BundleChanged()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if got, err := s.Get(ctx, web); err == nil {
			t.Errorf("what the CA answered is used, though it is revoked: it began at %s", got.Leaf.NotBefore)
		}
		time.Sleep(10 * time.Second)
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Errorf("a later one: %v", err)
		}
	})
}

// What the last process kept is not used if it was revoked meanwhile, and removed.
func TestWhatWasKeptAndIsRevokedIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web, folder := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), newLocker()
		var serial string
		process(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle, Locker: folder}, func(s *certs.Store) {
			s.Want(web)
			got, err := s.Get(t.Context(), web)
			if err != nil {
				t.Fatal(err)
			}
			serial = revocation.SerialOf(got.Leaf)
			synctest.Wait()
		})
		if folder.Load(web.String()) == nil {
			t.Fatal("nothing was kept")
		}
		var revoked revocations
		revoked.certificate(t, ca.Certificate(), serial)
		process(t, certs.Config{Fetch: down, Bundle: ca.Bundle, Revoked: revoked.Load, Locker: folder}, func(s *certs.Store) {
			s.Want(web)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if got, err := s.Get(ctx, web); err == nil {
				t.Errorf("the revoked one is used: %s", got.Leaf.SerialNumber)
			}
			if folder.Load(web.String()) != nil {
				t.Error("it is still kept")
			}
		})
	})
}
