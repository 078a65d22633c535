package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"net/url"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

const (
	// firstPause and lastPause bound the pauses between failed fetches, which
	// double each time.
	firstPause = 500 * time.Millisecond
	lastPause  = 150 * time.Second
	// waitedPause bounds them while connections wait for the certificate.
	waitedPause = time.Second
	// renewalPart of its life a certificate is renewed after: what is left is for
	// a controller that is away.
	renewalPart = 2.0 / 3
	// renewalJitter spreads the renewals of certificates that were fetched at
	// one time: 10% of their life around that.
	renewalJitter = 0.1
	// retireSpread is over how long a node's certificates below a root that
	// retires are replaced.
	retireSpread = 8 * time.Second
	// fetchTimeout bounds one fetch.
	fetchTimeout = 30 * time.Second
)

// keep holds one entry's certificate fresh until it is forgotten.
func (s *Store) keep(ctx context.Context, e *entry) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-e.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() {
		select {
		case <-e.gone:
			s.unstore(e)
		default: // the process ends: the next one wants it
		}
	}()
	failures := 0
	// had: whatever is in the locker has been in use here. What was dropped since,
	// for whatever reason, does not come back from there.
	had := false
	for ctx.Err() == nil {
		if !s.wanted(e) {
			select {
			case <-e.wake:
			case <-ctx.Done():
			}
			continue
		}
		if kept := s.recall(e, had); kept != nil {
			had = true
			s.use(e, kept)
			e.hurry() // what happened to its root while no process ran is looked at again
			s.pause(ctx, e, untilRenewal(kept.Leaf, s.now()))
			continue
		}
		release, err := s.take(ctx, e)
		if err != nil {
			return
		}
		certificate, err := s.fetch(ctx, e.id)
		release()
		if ctx.Err() != nil {
			return
		}
		s.settle(e, certificate, err)
		if err == nil {
			failures, had = 0, true
			s.store(e, certificate)
			s.pause(ctx, e, untilRenewal(certificate.Leaf, s.now()))
			continue
		}
		if had && !s.valid(e) {
			s.removeKept(e) // ended, or dropped: the next process may not have it either
		}
		pause := backoff(failures)
		if s.waitedFor(e) {
			pause = min(pause, waitedPause)
		}
		failures++
		s.config.Logger.Warn("certificate not fetched", "identity", e.id.String(), "retry_in", pause.String(), "error", err)
		s.pause(ctx, e, pause)
	}
}

// take waits for a slot: one that is meant for fetches ahead of need, or any as
// soon as somebody waits for the certificate.
func (s *Store) take(ctx context.Context, e *entry) (release func(), err error) {
	release = func() {}
	for ahead := false; !ahead && !s.waitedFor(e); {
		select {
		case s.ahead <- struct{}{}:
			release = func() { <-s.ahead }
			ahead = true
		case <-e.wake: // somebody may wait by now
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case s.slots <- struct{}{}:
		first := release
		return func() { <-s.slots; first() }, nil
	case <-ctx.Done():
		release()
		return nil, ctx.Err()
	}
}

func (s *Store) waitedFor(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.waiting > 0
}

// pause waits for a time, or until somebody needs what is not there. A wake-up
// never comes sooner than the first pause, whoever asks how often.
func (s *Store) pause(ctx context.Context, e *entry, d time.Duration) {
	hastened := false
	end := s.now().Add(d)
	due, soonest := time.NewTimer(d), time.NewTimer(min(d, firstPause))
	defer due.Stop()
	defer soonest.Stop()
	select {
	case <-soonest.C:
	case <-ctx.Done():
		return
	}
	if d <= firstPause {
		return
	}
	for {
		select {
		case <-due.C:
			return
		case <-ctx.Done():
			return
		case <-e.wake:
			if !s.valid(e) {
				return
			}
			if s.retires(e) && !hastened {
				hastened = true
				due.Reset(min(d, mathrand.N(retireSpread)))
			}
			if !hastened { // the clock may have been set
				due.Reset(min(d, max(0, end.Sub(s.now()))))
			}
		}
	}
}

func (s *Store) retires(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retiresLocked(e)
}

func (s *Store) valid(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.validLocked(s.now()) != nil
}

// wanted tells whether an entry does more than linger.
func (s *Store) wanted(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.wants > 0
}

// use has an entry hold a certificate that was not fetched.
func (s *Store) use(e *entry, certificate *tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.lastError, e.certificate, e.root = nil, certificate, s.rootOf(certificate, pool(s.config.Bundle()))
	e.announceLocked()
}

// settle notes what a fetch brought.
func (s *Store) settle(e *entry, certificate *tls.Certificate, err error) {
	s.metrics.fetched(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.lastError = err; err == nil {
		root := s.rootOf(certificate, pool(s.config.Bundle()))
		if e.root != "" && e.root != root {
			s.replaced[e.root] = time.Now()
			s.trustHasChangedLocked() // tunnels can be made anew now
		}
		e.certificate, e.root = certificate, root
		s.letGoLocked(e) // it was on its way
		e.announceLocked()
	}
}

// backoff is the pause after so many failures before: doubling, with a random
// half, so that nodes do not ask together.
func backoff(failures int) time.Duration {
	pause := time.Duration(math.Min(float64(lastPause), float64(firstPause)*math.Pow(2, float64(failures))))
	return pause/2 + mathrand.N(pause/2+1)
}

// untilRenewal is two thirds of the certificate's life, give or take the jitter.
func untilRenewal(leaf *x509.Certificate, now time.Time) time.Duration {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	jitter := time.Duration((mathrand.Float64()*2 - 1) * renewalJitter * float64(life))
	return max(leaf.NotBefore.Add(time.Duration(renewalPart*float64(life))+jitter).Sub(now), firstPause)
}

// fetch makes a key, has it certified, and checks what came back.
func (s *Store) fetch(ctx context.Context, id spiffe.ID) (*tls.Certificate, error) {
	roots := s.config.Bundle()
	if len(roots) == 0 {
		return nil, errors.New("the trust bundle is not known yet")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	chain, err := s.config.Fetch(ctx, id, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
	if err != nil {
		return nil, fmt.Errorf("ask the CA: %w", err)
	}
	certificate, err := assemble(chain)
	if err != nil {
		return nil, fmt.Errorf("read the CA's answer: %w", err)
	}
	if !key.PublicKey.Equal(certificate.Leaf.PublicKey) {
		return nil, errors.New("the CA's answer is for another key")
	}
	if got, err := spiffe.FromCertificate(certificate.Leaf); err != nil || got != id {
		return nil, fmt.Errorf("the CA's answer is for %s, not for %s (%v)", got, id, err)
	}
	if err := s.mayUse(certificate, pool(roots)); err != nil {
		return nil, fmt.Errorf("the CA's answer: %w", err)
	}
	certificate.PrivateKey = key
	return certificate, nil
}

// assemble reads PEM, leaf first; roots are left out, since a peer has its own.
func assemble(chain []string) (*tls.Certificate, error) {
	certificate := &tls.Certificate{}
	for _, element := range chain {
		for rest := []byte(element); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			parsed, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			if certificate.Leaf == nil {
				certificate.Leaf = parsed
			} else if parsed.CheckSignatureFrom(parsed) == nil {
				continue
			}
			certificate.Certificate = append(certificate.Certificate, block.Bytes)
		}
	}
	if certificate.Leaf == nil {
		return nil, errors.New("no certificate in it")
	}
	return certificate, nil
}
