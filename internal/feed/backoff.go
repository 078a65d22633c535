package feed

import (
	"math/rand/v2"
	"time"
)

// As the field's own clients do: fast enough that a restarted controller is
// found at once, slow enough that a thousand nodes do not keep it down. A replica
// that does not lead refuses connections, so one attempt may not be enough.
const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 2 * time.Second
)

// backoff doubles the wait between attempts. The zero value is ready.
type backoff struct{ last time.Duration }

// next is between half and all of the doubled wait, so that nodes that lost
// the same controller do not come back together.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return b.last/2 + rand.N(b.last/2+1)
}

func (b *backoff) reset() { b.last = 0 }
