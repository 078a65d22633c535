package ca

import (
	"slices"
	"time"
)

const (
	// awayBound is how long a node that does not acknowledge holds a new root up:
	// by then every certificate that it can have has ended, so that it carries
	// nothing until it has spoken with the controller again.
	awayBound = maxLifetime
	// retireAfter a root stopped signing, the last leaf below it has ended.
	retireAfter = maxLifetime + Backdate
)

// phase of a root in the trust bundle.
type phase string

const (
	// announced: nodes are to trust it; it has signed nothing.
	announced phase = "Announced"
	// signing: what is signed chains to it. There is at most one.
	signing phase = "Signing"
	// retiring: it signs no more; leaves that chain to it are still about.
	retiring phase = "Retiring"
)

// trusted is one root in the bundle.
type trusted struct {
	// PEM of the certificate.
	PEM         string    `json:"pem"`
	Fingerprint string    `json:"fingerprint"`
	Phase       phase     `json:"phase"`
	Since       time.Time `json:"since"`
}

// bundle is the roots of the mesh, oldest first. It is a value: next makes
// another one.
type bundle []trusted

// situation is all that decides on the next bundle.
type situation struct {
	now time.Time
	// desired is the root that the issuer to be used chains to.
	desired trusted
	// waiting are the nodes that have not acknowledged this very bundle, and
	// away those of them that are not connected.
	waiting, away []string
	// used tells whether some node may still hold a leaf that chains to a root,
	// which signs no more since then.
	used func(fingerprint string, since time.Time) bool
}

// next returns the bundle that follows, one step at a time: whoever calls
// publishes it, and asks again once nodes answered.
//
//	not there -> Announced     it is desired
//	Announced -> Signing       every node acknowledged the bundle with it
//	Signing   -> Retiring      another one signs
//	Retiring  -> not there     no leaf below it is left, and every node knows
//	Announced -> not there     it is desired no longer
func (b bundle) next(s situation) bundle {
	if len(b) == 0 { // nobody trusts anything yet: nobody has to be waited for
		first := s.desired
		first.Phase, first.Since = signing, s.now
		return bundle{first}
	}
	at := b.index(s.desired.Fingerprint)
	if at < 0 {
		added := s.desired
		added.Phase, added.Since = announced, s.now
		return append(b.withoutAnnounced(), added)
	}
	if b[at].Phase != signing {
		if !s.acknowledged(b[at].Since) {
			return b
		}
		return b.sign(at, s.now)
	}
	kept := slices.Clone(b)
	return slices.DeleteFunc(kept, func(t trusted) bool {
		switch t.Phase {
		case announced:
			return true // something else is desired by now
		case retiring:
			ended := !s.now.Before(t.Since.Add(retireAfter))
			return ended || len(s.waiting) == 0 && !s.used(t.Fingerprint, t.Since)
		}
		return false
	})
}

// acknowledged tells whether all nodes work with the bundle, but for those that
// have been away for so long that they carry nothing.
func (s situation) acknowledged(since time.Time) bool {
	if len(s.waiting) == 0 {
		return true
	}
	return len(s.waiting) == len(s.away) && !s.now.Before(since.Add(awayBound))
}

func (b bundle) sign(at int, now time.Time) bundle {
	next := slices.Clone(b)
	for i := range next {
		switch {
		case i == at:
			next[i].Phase, next[i].Since = signing, now
		case next[i].Phase == signing:
			next[i].Phase, next[i].Since = retiring, now
		}
	}
	return next
}

func (b bundle) withoutAnnounced() bundle {
	return slices.DeleteFunc(slices.Clone(b), func(t trusted) bool { return t.Phase == announced })
}

func (b bundle) index(fingerprint string) int {
	return slices.IndexFunc(b, func(t trusted) bool { return t.Fingerprint == fingerprint })
}

// signing returns the fingerprint of the root that signs.
func (b bundle) signing() string {
	for _, t := range b {
		if t.Phase == signing {
			return t.Fingerprint
		}
	}
	return ""
}

// roots in PEM, in the bundle's order.
func (b bundle) roots() (pem []string) {
	for _, t := range b {
		pem = append(pem, t.PEM)
	}
	return pem
}

// retiringRoots are the fingerprints of the roots that sign no more.
func (b bundle) retiringRoots() (fingerprints []string) {
	for _, t := range b {
		if t.Phase == retiring {
			fingerprints = append(fingerprints, t.Fingerprint)
		}
	}
	return fingerprints
}
