package hbone

import "time"

// rate is how many bytes a second a tunnel has carried lately.
type rate struct {
	since time.Time
	bytes int
	last  float64 // of the time before since
}

// add takes over the bytes in *n.
func (r *rate) add(n *int) {
	if *n == 0 {
		return
	}
	now := time.Now()
	r.turn(now)
	r.bytes += *n
	*n = 0
}

// turn begins to count anew when it is time.
func (r *rate) turn(now time.Time) {
	switch elapsed := now.Sub(r.since); {
	case elapsed > 2*rateOver:
		*r = rate{since: now} // there was a pause, or there is nothing yet
	case elapsed > rateOver:
		*r = rate{since: now, last: float64(r.bytes) / elapsed.Seconds()}
	}
}

// perSecond is the rate now.
func (r *rate) perSecond() float64 {
	r.turn(time.Now())
	return max(r.last, float64(r.bytes)/rateOver.Seconds())
}
