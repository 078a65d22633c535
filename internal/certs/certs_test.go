package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func id(t *testing.T, namespace, account string) spiffe.ID {
	t.Helper()
	id, err := spiffe.New("cluster.local", namespace, account)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// store runs a Store until the test ends.
func store(t *testing.T, c certs.Config) *certs.Store {
	t.Helper()
	c.Logger = slog.New(slog.DiscardHandler)
	s := certs.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

type fetch = func(context.Context, spiffe.ID, []byte) ([]string, error)

func TestACertificateIsFetchedAheadOfNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle})
		s.Want(web)
		synctest.Wait()
		if _, ok := s.Expires(web); !ok {
			t.Fatal("nothing was fetched before anybody asked")
		}
		got, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		if name, err := spiffe.FromCertificate(got.Leaf); err != nil || name != web {
			t.Errorf("the certificate is for %s (%v)", name, err)
		}
		if len(got.Certificate) != 1 {
			t.Errorf("%d certificates go to peers: a root has no business there", len(got.Certificate))
		}
	})
}

func TestOnlyWhatIsWantedHasAKey(t *testing.T) {
	ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
	s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle})
	if _, err := s.Get(t.Context(), web); !errors.Is(err, certs.ErrNotWanted) {
		t.Errorf("before Want: %v", err)
	}
	s.Want(web)
	s.Want(web)
	s.Forget(web)
	if _, err := s.Get(t.Context(), web); err != nil {
		t.Errorf("one Want of two was taken back: %v", err)
	}
	s.Forget(web)
	if _, err := s.Get(t.Context(), web); !errors.Is(err, certs.ErrNotWanted) {
		t.Errorf("after the last Forget: %v", err)
	}
}

func TestRenewalAtTwoThirdsOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle})
		s.Want(web)
		first, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		serial := func() string {
			certificate, err := s.Get(t.Context(), web)
			if err != nil {
				t.Fatal(err)
			}
			return certificate.Leaf.SerialNumber.String()
		}
		time.Sleep(13*time.Hour + 30*time.Minute) // two thirds of 24 h, less 10% and a bit
		if serial() != first.Leaf.SerialNumber.String() {
			t.Error("renewed long before its time")
		}
		time.Sleep(5 * time.Hour)
		if serial() == first.Leaf.SerialNumber.String() {
			t.Error("not renewed in its time")
		}
	})
}

func TestTheOldOneIsUsedUntilItEndsAndNotALongerMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		var down atomic.Bool
		s := store(t, certs.Config{Bundle: ca.Bundle, Fetch: func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
			if down.Load() {
				return nil, errors.New("the CA is down")
			}
			return ca.Fetch(ctx, id, csr)
		}})
		s.Want(web)
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		down.Store(true)
		time.Sleep(23 * time.Hour)
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Errorf("an hour before its end: %v", err)
		}
		time.Sleep(2 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Get(ctx, web); err == nil || !strings.Contains(err.Error(), "the CA is down") {
			t.Errorf("an hour after its end: %v, want what the CA said", err)
		}
		down.Store(false)
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Errorf("the CA is back: %v", err)
		}
	})
}

func TestAnAnswerThatIsNotWhatWasAskedForIsRefused(t *testing.T) {
	ca, other := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
	web, till := id(t, "shop", "web"), id(t, "shop", "till")
	for name, answer := range map[string]fetch{
		"another identity":           func(ctx context.Context, _ spiffe.ID, csr []byte) ([]string, error) { return ca.Fetch(ctx, till, csr) },
		"a root that is not trusted": other.Fetch,
		"nothing":                    func(context.Context, spiffe.ID, []byte) ([]string, error) { return nil, nil },
		"garbage": func(context.Context, spiffe.ID, []byte) ([]string, error) {
			return []string{"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, nil
		},
		"another key, of an old answer": replay(t, ca, web),
		"one that has ended": func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
			ended := *ca
			ended.TTL = -time.Minute
			return ended.Fetch(ctx, id, csr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t, certs.Config{Fetch: answer, Bundle: ca.Bundle})
			s.Want(web)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if certificate, err := s.Get(ctx, web); err == nil {
				t.Errorf("accepted: %v", certificate.Leaf.URIs)
			}
		})
	}
}

// replay answers every request with a certificate for a key of its own.
func replay(t *testing.T, ca *certstest.CA, of spiffe.ID) fetch {
	issued := ca.Issue(of, time.Hour)
	return func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
		return []string{certstest.PEM(issued.Certificate[0])}, nil
	}
}

func TestABundleThatCameLaterIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, web := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		var known atomic.Bool
		s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: func() []*x509.Certificate {
			if known.Load() {
				return ca.Bundle()
			}
			return nil
		}})
		s.Want(web)
		time.Sleep(time.Minute)
		if _, ok := s.Expires(web); ok {
			t.Fatal("accepted without a bundle to check against")
		}
		known.Store(true)
		s.BundleChanged()
		start := time.Now()
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("it took %s after the bundle was known", waited)
		}
	})
}

func TestARootThatIsGoneTakesItsCertificatesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after, web := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local"), id(t, "shop", "web")
		var now atomic.Pointer[certstest.CA]
		now.Store(before)
		s := store(t, certs.Config{
			Fetch: func(ctx context.Context, id spiffe.ID, csr []byte) ([]string, error) {
				return now.Load().Fetch(ctx, id, csr)
			},
			Bundle: func() []*x509.Certificate { return now.Load().Bundle() },
		})
		s.Want(web)
		if _, err := s.Get(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		now.Store(after)
		s.BundleChanged()
		certificate, err := s.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		if err := certificate.Leaf.CheckSignatureFrom(after.Bundle()[0]); err != nil {
			t.Errorf("still of the old root: %v", err)
		}
	})
}

// handshake connects a client and a server over loopback.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			accepted <- err
			return
		}
		defer conn.Close()
		tlsConn := tls.Server(conn, server)
		err = tlsConn.HandshakeContext(t.Context())
		if err == nil {
			_, err = tlsConn.Write([]byte("hello"))
		}
		accepted <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	tlsConn := tls.Client(conn, client)
	clientErr = tlsConn.HandshakeContext(t.Context())
	if clientErr == nil {
		_, clientErr = tlsConn.Read(make([]byte, 5)) // a refusal of our certificate comes with the first read
	}
	conn.Close()
	return clientErr, <-accepted
}

func TestWhoIsAcceptedAsAPeer(t *testing.T) {
	ca, stranger := certstest.NewCA(t, "cluster.local"), certstest.NewCA(t, "cluster.local")
	web, till := id(t, "shop", "web"), id(t, "shop", "till")
	s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle})
	s.Want(web)
	s.Want(till)
	elsewhere, err := spiffe.New("elsewhere.example", "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	// with is a client that shows the given certificate and believes anybody.
	with := func(certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: certificates}
	}
	oldVersion := with(ca.Issue(web, time.Hour))
	oldVersion.MaxVersion = tls.VersionTLS12
	silent := with(ca.Issue(web, time.Hour))
	silent.NextProtos = nil
	for name, c := range map[string]struct {
		client, server *tls.Config
		accepted       bool
	}{
		"both of the mesh":                   {s.ClientConfig(web, till), s.ServerConfig(till), true},
		"a peer of the mesh from elsewhere":  {with(ca.Issue(web, time.Hour)), s.ServerConfig(till), true},
		"the server is not who was expected": {s.ClientConfig(web, web), s.ServerConfig(till), false},
		"the client is not who was expected": {s.ClientConfig(web, till), s.ServerConfig(till, till), false},
		"no certificate":                     {with(), s.ServerConfig(till), false},
		"an unknown root":                    {with(stranger.Issue(web, time.Hour)), s.ServerConfig(till), false},
		"another trust domain":               {with(ca.Issue(elsewhere, time.Hour)), s.ServerConfig(till), false},
		"a certificate that has ended":       {with(ca.Issue(web, -time.Minute)), s.ServerConfig(till), false},
		"TLS 1.2":                            {oldVersion, s.ServerConfig(till), false},
		"no application protocol":            {silent, s.ServerConfig(till), false},
	} {
		t.Run(name, func(t *testing.T) {
			clientErr, serverErr := handshake(t, c.client, c.server)
			if ok := clientErr == nil && serverErr == nil; ok != c.accepted {
				t.Errorf("accepted %v, want %v (client: %v, server: %v)", ok, c.accepted, clientErr, serverErr)
			}
		})
	}
}

// misissued are certificates that an authority of the mesh signed, and that are not
// ones to be accepted: for a client, for a server, or both.
var misissued = map[string]struct {
	change             func(*x509.Certificate)
	asClient, asServer bool
}{
	"as it should be":     {func(*x509.Certificate) {}, true, true},
	"for clients alone":   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, true, false},
	"for servers alone":   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, false, true},
	"for nothing it says": {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, false, false},
	"for anything":        {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, false, false},
	"for signing code":    {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, false, false},
	"without signatures":  {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false, false},
	"without a key's use": {func(c *x509.Certificate) { c.KeyUsage = 0 }, false, false},
	"an authority's":      {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false, false},
	"not valid yet": {func(c *x509.Certificate) {
		c.NotBefore = time.Now().Add(time.Hour)
		c.NotAfter = c.NotBefore.Add(time.Hour)
	}, false, false},
	"ended": {func(c *x509.Certificate) {
		c.NotBefore = time.Now().Add(-time.Hour)
		c.NotAfter = time.Now().Add(-time.Second)
	}, false, false},
	"two identities": {func(c *x509.Certificate) {
		c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/till"})
	}, false, false},
	"the same one twice": {func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs...) }, false, false},
	"no identity":        {func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"web.shop.svc"} }, false, false},
}

// TestWhatACertificateIsGoodFor: the authority's signature alone opens nothing.
func TestWhatACertificateIsGoodFor(t *testing.T) {
	ca, web, till := certstest.NewCA(t, "cluster.local"), id(t, "shop", "web"), id(t, "shop", "till")
	s := store(t, certs.Config{Fetch: ca.Fetch, Bundle: ca.Bundle})
	s.Want(till)
	for name, c := range misissued {
		t.Run(name, func(t *testing.T) {
			shows := &tls.Config{
				InsecureSkipVerify: true, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert,
				Certificates: []tls.Certificate{ca.Issue(web, time.Hour, c.change)},
			}
			if _, err := handshake(t, shows, s.ServerConfig(till)); (err == nil) != c.asClient {
				t.Errorf("as a client's: %v", err)
			}
			if err, _ := handshake(t, s.ClientConfig(till, web), shows); (err == nil) != c.asServer {
				t.Errorf("as a server's: %v", err)
			}
		})
	}
}
