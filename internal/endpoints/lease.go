package endpoints

// Lease is a connection's share in an endpoint, from the moment that it is about
// to be established. Whoever has it ends it, once and in every case. A nil Lease
// is that of a destination that is no endpoint: its methods do nothing.
type Lease struct {
	// Fixed.
	registry *Registry
	key      Key
	endpoint *endpoint

	// Guarded by registry.mu.
	ended bool
	// asks: its share is that of the requests under way.
	asks bool
}

// Connect counts a connection that is about to be established. It fails if the
// endpoint is ejected, perhaps only since it was chosen; regardless of that it
// succeeds if the caller has no other.
//
// The first connection after an ejection is the only one until its outcome is
// known.
func (r *Registry) Connect(key Key, regardless bool) (*Lease, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.all[key]
	switch {
	case e == nil:
		e = &endpoint{}
		r.all[key] = e
	case !regardless && e.keptOut(r.now()):
		return nil, false
	case e.active == 0:
		r.idle--
	}
	e.active++
	l := &Lease{registry: r, key: key, endpoint: e}
	if e.distrusted && !e.keptOut(r.now()) {
		e.probe = l
	}
	return l, true
}

// ForRequests says that the connection is for requests: while none is under way, it is no load.
func (l *Lease) ForRequests() {
	if l == nil {
		return
	}
	l.registry.mu.Lock()
	defer l.registry.mu.Unlock()
	if !l.ended && !l.asks {
		l.asks = true
		l.endpoint.asked.Add(-1)
	}
}

// Asked counts a request that is under way, until done is called, once.
func (l *Lease) Asked() (done func()) {
	if l == nil {
		return func() {}
	}
	e := l.endpoint
	e.asked.Add(1)
	return func() { e.asked.Add(-1) }
}

// Established says that the connection stands or, of one for requests, that one was
// answered: it may be said again and again.
func (l *Lease) Established() {
	if l == nil || !l.endpoint.unwell.Load() {
		return
	}
	r := l.registry
	r.mu.Lock()
	back := !l.ended && r.establishedLocked(l)
	l.endProbeLocked()
	r.mu.Unlock()
	if back {
		r.logger.Info("endpoint is back", "workload", l.key.UID, "target", l.key.Target)
	}
}

// Failed ends the lease of a connection that could not be established because of
// the endpoint. reason is a metric's label. peers is asked only if that may
// eject the endpoint: all that the connection could have gone to.
func (l *Lease) Failed(reason string, peers func() []Key) {
	l.Unanswered(reason, peers)
	l.End()
}

// Unanswered is Failed for a request on a connection that stands, and may go on to.
func (l *Lease) Unanswered(reason string, peers func() []Key) {
	if l == nil {
		return
	}
	r := l.registry
	r.mu.Lock()
	due := !l.ended && r.failedLocked(l)
	r.mu.Unlock()
	if due {
		// Without the lock: there may be thousands.
		r.eject(l, reason, peers())
	}
	l.Undecided()
}

// Undecided says that the endpoint was asked, and nothing learnt by it of how it is
// doing: if it was to be tried, somebody else tries it.
func (l *Lease) Undecided() {
	if l == nil || !l.endpoint.unwell.Load() {
		return
	}
	l.registry.mu.Lock()
	defer l.registry.mu.Unlock()
	l.endProbeLocked()
}

// End says that the connection is over, or not to be. Only the first call counts.
func (l *Lease) End() {
	if l == nil {
		return
	}
	r := l.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	if l.asks {
		l.endpoint.asked.Add(1)
	}
	l.endProbeLocked()
	r.releaseLocked(l.key, l.endpoint)
}

func (l *Lease) endProbeLocked() {
	if l.endpoint.probe == l {
		l.endpoint.probe = nil
	}
}
