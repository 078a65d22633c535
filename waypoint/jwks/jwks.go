// Package jwks fetches the keys of tokens' issuers (RFC 7517) and keeps them.
//
//	jwks.go   Store: what is known of each source, when it is fetched again, who waits
//	fetch.go  one fetch: whom it may reach, how much it takes
//
// Keys are fetched when they are first wanted, and again every refreshEvery, while
// the last ones are in use; when a token names a key that they lack, soon, but not
// more often than lackingEvery. Those that could not be fetched again for keepFor are
// over. A source is a URI, and who vouches for its host: one fetch at a time goes to it,
// and everybody waits for that one.
//
// Invariants: keys come from their source or from nowhere: what could not be fetched is an
// error, for whoever wants it; where authorities are named, nobody else vouches for the
// host; a fetch is bounded in time and size, follows no redirect, and reaches neither this
// machine nor what only this machine reaches; when Run returns, so has every goroutine.
package jwks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/jwt"
)

const (
	// refreshEvery is how old keys are when others are asked for: issuers publish new
	// ones long before they sign with them.
	refreshEvery = 20 * time.Minute
	// keepFor is how old keys may become where there are no others to be had.
	keepFor = time.Hour
	// lackingEvery bounds what unknown keys in tokens, which anybody can make up, cost.
	lackingEvery = 10 * time.Second
	// The time between attempts that fail.
	firstRetry, lastRetry = time.Second, 30 * time.Second
	// fetchTimeout bounds a fetch, and with it how long requests wait.
	fetchTimeout = 5 * time.Second
	// maxSources that keys are kept of; one that nobody asked for for keepFor makes room.
	maxSources = 1024
)

// Mesh opens connections to hosts that are Services.
type Mesh interface {
	// DialService connects to a host that is a Service's, for keys. ok is false if it is
	// none. Over anything but a tunnel of the mesh, plain is an error.
	DialService(ctx context.Context, host string, port uint16, plain bool) (conn net.Conn, ok bool, err error)
}

// Config of a Store. All fields but TLS and Now are required.
type Config struct {
	Mesh       Mesh
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// TLS of connections to issuers, whose sources name no authorities: the machine's roots,
	// or those in the binary, if nil.
	TLS *tls.Config
	// Now is the clock; the usual one if nil.
	Now func() time.Time
}

// Store has the keys of all sources that somebody asked for.
type Store struct {
	cfg     Config
	fetches *prometheus.CounterVec

	mu sync.Mutex
	// Guarded by mu.
	entries map[jwt.Source]*entry
	over    bool
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// entry is what is known of a source.
type entry struct {
	keys    *jwt.Keys
	fetched time.Time // when they were
	tried   time.Time // when the last fetch began
	failed  time.Time // when the last one that failed ended
	asked   time.Time
	err     error // of the last fetch; nil if it succeeded
	wait    time.Duration
	// pending is closed once the fetch that is under way is over; nil without one.
	pending chan struct{}
}

// New makes a Store; Run is to be called once.
func New(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{
		cfg: cfg, entries: map[jwt.Source]*entry{},
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_jwks_fetches_total", Help: "Fetches of the keys of tokens' issuers, by result: ok or failed.",
		}, []string{"result"}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	cfg.Registerer.MustRegister(s.fetches)
	return s
}

// Run until ctx ends, and then until nothing is fetched any more.
func (s *Store) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.cancel()
	s.running.Wait()
	return nil
}

// Keys of a source, fetched if need be. With lacking, the keys that a token's is not among,
// it returns later ones, if they may be had now, and else the same.
func (s *Store) Keys(ctx context.Context, from jwt.Source, lacking *jwt.Keys) (*jwt.Keys, error) {
	for {
		keys, pending, err := s.look(from, lacking)
		if pending == nil {
			return keys, err
		}
		select {
		case <-pending:
			if lacking != nil {
				// Whatever came of it is what there is now.
				keys, _, err := s.look(from, nil)
				return keys, err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("keys at %s: %w", from.URI, context.Cause(ctx))
		}
	}
}

// Cached are the keys of a source that are at hand.
func (s *Store) Cached(from jwt.Source) (*jwt.Keys, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[from]
	if e == nil || e.keys == nil || s.cfg.Now().Sub(e.fetched) >= keepFor {
		return nil, fmt.Errorf("keys at %s: are not known", from.URI)
	}
	return e.keys, nil
}

// Missing says why there are no keys of a source; nil if there are.
func (s *Store) Missing(from jwt.Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[from]
	switch {
	case e != nil && e.keys != nil && s.cfg.Now().Sub(e.fetched) < keepFor:
		return nil
	case e == nil || e.err == nil:
		return fmt.Errorf("keys at %s: have not been fetched yet", from.URI)
	}
	return fmt.Errorf("keys at %s: %w", from.URI, e.err)
}

// Want has keys fetched before the first token comes.
func (s *Store) Want(from jwt.Source) { s.look(from, nil) }

// look returns the keys, or why there are none, or what is to be waited for.
func (s *Store) look(from jwt.Source, lacking *jwt.Keys) (keys *jwt.Keys, pending chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	e := s.entries[from]
	if e == nil {
		if e = s.makeRoomLocked(from, now); e == nil {
			return nil, nil, fmt.Errorf("keys at %s: those of %d others are wanted already", from.URI, maxSources)
		}
	}
	e.asked = now
	age := now.Sub(e.fetched)
	good := e.keys != nil && age < keepFor
	mayTry := e.pending == nil && (e.tried.IsZero() || e.err == nil || now.Sub(e.failed) >= e.wait)
	switch {
	case good && lacking != nil && e.keys == lacking:
		if e.pending == nil && mayTry && now.Sub(e.tried) >= lackingEvery {
			s.fetchLocked(from, e)
		}
		if e.pending == nil {
			return e.keys, nil, nil
		}
		return nil, e.pending, nil
	case good:
		if age >= refreshEvery && mayTry {
			s.fetchLocked(from, e)
		}
		return e.keys, nil, nil
	case e.pending == nil && !mayTry:
		return nil, nil, fmt.Errorf("keys at %s: %w", from.URI, e.err)
	case e.pending == nil:
		s.fetchLocked(from, e)
	}
	if e.pending == nil {
		return nil, nil, fmt.Errorf("keys at %s: %w", from.URI, errOver)
	}
	return nil, e.pending, nil
}

var errOver = errors.New("the waypoint ends")

// makeRoomLocked adds an entry, in place of one that nobody wants any more if there are
// too many.
func (s *Store) makeRoomLocked(from jwt.Source, now time.Time) *entry {
	if len(s.entries) >= maxSources {
		for other, e := range s.entries {
			if e.pending == nil && now.Sub(e.asked) >= keepFor {
				delete(s.entries, other)
			}
		}
		if len(s.entries) >= maxSources {
			return nil
		}
	}
	e := &entry{}
	s.entries[from] = e
	return e
}

// fetchLocked begins a fetch, unless all is over.
func (s *Store) fetchLocked(from jwt.Source, e *entry) {
	if s.over {
		return
	}
	e.pending, e.tried = make(chan struct{}), s.cfg.Now()
	s.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, fetchTimeout)
		defer cancel()
		keys, err := s.fetch(ctx, from)
		s.mu.Lock()
		defer s.mu.Unlock()
		close(e.pending)
		e.pending = nil
		if e.err = err; err != nil {
			s.fetches.WithLabelValues("failed").Inc()
			e.failed = s.cfg.Now()
			e.wait = min(max(firstRetry, 2*e.wait), lastRetry)
			s.cfg.Logger.Warn("the keys of an issuer could not be fetched", "uri", from.URI, "error", err, "last_good", e.keys != nil, "fetched", e.fetched)
			return
		}
		s.fetches.WithLabelValues("ok").Inc()
		e.keys, e.fetched, e.wait = keys, s.cfg.Now(), 0
	})
}
