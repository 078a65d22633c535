// Package certs keeps the certificates of the identities that a node's pods have.
//
//	Want     an identity is wanted: its key is made and its certificate fetched
//	         ahead of need, and again at two thirds of its life
//	Get      waits for it, before those that nobody waits for
//	Forget   some time after the last Want is taken back, key and certificate are dropped
//	Trusts   judges the peer of a live tunnel again; TrustChanged says when to ask
//
// An entry is kept by one goroutine of [Store.Run]. A fetch that fails is
// repeated with growing pauses, while the certificate at hand stays in use until
// it ends. What the CA returns is accepted only if it is for the identity and
// key asked for and chains to the trust bundle. A [Locker] keeps it for the next
// process, which judges it by the same standards.
//
// Invariants: no expired or revoked certificate is ever used; a peer is accepted
// only if its certificate chains to the bundle of that moment, nothing on that way
// is revoked, it is meant for what it is used for, and it bears exactly one SPIFFE ID,
// of our own trust domain, and one of those expected where any are. No session is resumed: each is judged anew. A
// peer that was accepted stays so until its certificate has ended, or that of a later
// proof of the same peer.
//
// Which identities a node may have is the CA's decision.
package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Config is what a [Store] stands on.
type Config struct {
	// Fetch asks the CA to sign a request for an identity. It returns PEM: the
	// leaf first, intermediates after it, and possibly roots at the end.
	Fetch func(ctx context.Context, id spiffe.ID, csrPEM []byte) ([]string, error)
	// Bundle returns the roots that are trusted now; empty until they are known.
	Bundle func() []*x509.Certificate
	// Retiring, if set, returns the fingerprints of those roots that sign no more:
	// certificates below them are replaced ahead of their time.
	Retiring func() []string
	// Revoked, if set, returns what is revoked now: such peers are refused, and such
	// certificates of our own replaced at once.
	Revoked func() *revocation.List
	// Locker keeps certificates for the next process; nil to start from nothing.
	Locker Locker
	// Now is the clock, time.Now when nil. It may be set while the Store runs.
	Now func() time.Time
	// Tolerance of other clocks than ours when a live tunnel's peer is judged;
	// DefaultTolerance when zero.
	Tolerance time.Duration
	Logger    *slog.Logger
	// Registerer receives the metrics; nil for none.
	Registerer prometheus.Registerer
}

// ErrNotWanted is returned for an identity that nobody wants: there is no key.
var ErrNotWanted = errors.New("identity is not wanted on this node")

const (
	// maxFetches bounds what one node asks of the CA at a time.
	maxFetches = 8
	// rootSettles is what peers may take to make tunnels anew in which they are shown a
	// certificate that is below another root: they try every second.
	rootSettles = 5 * time.Second
	// maxAhead of them may be for certificates that nobody waits for yet.
	maxAhead = 6
)

// Store keeps the certificates of the identities wanted on this node.
type Store struct {
	// fixed after New
	config  Config
	metrics metrics
	slots   chan struct{} // maxFetches
	ahead   chan struct{} // maxAhead
	// keeping is held while the locker is written to, before mu.
	keeping sync.Mutex

	mu      sync.Mutex // guards the rest
	entries map[spiffe.ID]*entry
	// replaced is when a certificate below a root was last replaced by one below
	// another, by the former's fingerprint.
	replaced map[string]time.Time
	// trustChanged is closed, and another, when the bundle has changed.
	trustChanged chan struct{}
	// start begins an entry's goroutine; nil before Run.
	start func(*entry)
}

// entry is one wanted identity.
type entry struct {
	// fixed
	id spiffe.ID
	// gone is closed a while after the last Want was taken back.
	gone chan struct{}
	// wake is sent to when somebody waits, or the bundle changed.
	wake chan struct{}

	// guarded by Store.mu
	wants       int
	forgotten   *time.Timer // while wants is 0: the end of lingering
	waiting     int
	certificate *tls.Certificate // with Leaf; nil until there is one
	root        string           // fingerprint of what it chains to
	lastError   error
	changed     chan struct{} // closed when certificate or lastError changes
}

// New returns a Store; its fetching begins with [Store.Run].
func New(c Config) *Store {
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Tolerance = cmp.Or(c.Tolerance, DefaultTolerance)
	s := &Store{
		config:   c,
		slots:    make(chan struct{}, maxFetches),
		ahead:    make(chan struct{}, maxAhead),
		entries:  map[spiffe.ID]*entry{},
		replaced: map[string]time.Time{},

		trustChanged: make(chan struct{}),
	}
	s.metrics = newMetrics(c.Registerer, s)
	return s
}

// Run fetches and renews until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { s.watchClock(ctx) })
	s.mu.Lock()
	s.start = func(e *entry) { group.Go(func() { s.keep(ctx, e) }) }
	for _, e := range s.entries {
		s.start(e)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.start = func(*entry) {} // nothing begins while we wait
	for _, e := range s.entries {
		if e.forgotten != nil {
			e.forgotten.Stop()
		}
	}
	s.mu.Unlock()
	group.Wait()
	return nil
}

// Want asks that id's certificate be fetched ahead of need and kept fresh.
// Every Want is to be paired with a Forget.
func (s *Store) Want(id spiffe.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		if e.wants++; e.wants == 1 {
			e.forgotten.Stop()
			e.hurry()
		}
		return
	}
	e := &entry{id: id, wants: 1, gone: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{})}
	s.entries[id] = e
	if s.start != nil {
		s.start(e)
	}
}

// Forget takes back one Want; after the last one, nobody gets the certificate,
// and when nobody wants it again for a while, it is dropped with its key.
func (s *Store) Forget(id spiffe.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil || e.wants == 0 {
		return
	}
	if e.wants--; e.wants > 0 {
		return
	}
	e.forgotten = time.AfterFunc(linger, func() { s.drop(e) })
	s.letGoLocked(e)
	e.announceLocked()
}

// letGoLocked drops what an entry holds that nobody wants, once its root retires: the CA
// renews it only for a pod that is there, and the root would be in use for as long as it lingers.
func (s *Store) letGoLocked(e *entry) {
	if e.wants == 0 && s.retiresLocked(e) {
		s.replaced[e.root] = time.Now()
		e.certificate = nil
	}
}

// drop ends an entry that nobody has wanted for a while.
func (s *Store) drop(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.wants > 0 || s.entries[e.id] != e {
		return
	}
	delete(s.entries, e.id)
	close(e.gone)
}

// announceLocked wakes all who wait for a change of the entry.
func (e *entry) announceLocked() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// hurry makes the entry's goroutine fetch now, unless it has just tried.
func (e *entry) hurry() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// validLocked returns the certificate if it may be used now.
func (e *entry) validLocked(now time.Time) *tls.Certificate {
	if e.certificate == nil || now.After(e.certificate.Leaf.NotAfter) {
		return nil
	}
	return e.certificate
}

// Get returns a valid certificate of a wanted identity and waits for it until ctx ends.
func (s *Store) Get(ctx context.Context, id spiffe.ID) (*tls.Certificate, error) {
	for {
		s.mu.Lock()
		e := s.entries[id]
		if e == nil || e.wants == 0 {
			s.mu.Unlock()
			return nil, fmt.Errorf("certificate of %s: %w", id, ErrNotWanted)
		}
		if certificate := e.validLocked(s.now()); certificate != nil {
			s.mu.Unlock()
			return certificate, nil
		}
		e.waiting++
		changed, lastError := e.changed, e.lastError
		s.mu.Unlock()
		e.hurry()
		select {
		case <-changed:
			s.leave(e)
		case <-ctx.Done():
			s.leave(e)
			if lastError != nil {
				return nil, fmt.Errorf("certificate of %s: %w (the last attempt: %w)", id, ctx.Err(), lastError)
			}
			return nil, fmt.Errorf("certificate of %s: %w", id, ctx.Err())
		}
	}
}

// leave is the end of a wait.
func (s *Store) leave(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.waiting--
}

// Expires returns when the held certificate of id expires.
func (s *Store) Expires(id spiffe.ID) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil && e.certificate != nil {
		return e.certificate.Leaf.NotAfter, true
	}
	return time.Time{}, false
}

// Serial returns the serial number of the held certificate of id, in hex; empty
// without one.
func (s *Store) Serial(id spiffe.ID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil && e.certificate != nil {
		return revocation.SerialOf(e.certificate.Leaf)
	}
	return ""
}

// BundleChanged judges the held certificates by the bundle and the revocations of
// now: what is no longer vouched for, or is revoked, is dropped and fetched anew;
// what chains to a root that retires is replaced soon, and used until then.
func (s *Store) BundleChanged() {
	roots := pool(s.config.Bundle())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trustHasChangedLocked()
	for _, e := range s.entries {
		if e.certificate != nil {
			if err := s.mayUse(e.certificate, roots); err != nil {
				s.config.Logger.Warn("certificate dropped", "identity", e.id.String(), "error", err)
				e.certificate = nil
				e.announceLocked()
			}
		}
		s.letGoLocked(e)
		if e.certificate == nil || s.retiresLocked(e) {
			e.hurry()
		}
	}
}

// Roots returns the fingerprints of the roots that held certificates chain to, or did
// until just now: tunnels that began with them are being replaced.
func (s *Store) Roots() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	roots := map[string]struct{}{}
	for root, replaced := range s.replaced {
		if time.Since(replaced) < rootSettles {
			roots[root] = struct{}{}
		} else {
			delete(s.replaced, root)
		}
	}
	for _, e := range s.entries {
		if e.certificate != nil {
			roots[e.root] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(roots))
}

// retiresLocked tells whether an entry's root signs no more.
func (s *Store) retiresLocked(e *entry) bool {
	return e.certificate != nil && s.config.Retiring != nil && slices.Contains(s.config.Retiring(), e.root)
}
