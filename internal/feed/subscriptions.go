package feed

import (
	"maps"
	"slices"
)

// subscriptions are the address resources that the controller was asked for by
// name on one stream.
//
// Names are added only because somebody asks, or when the stream begins; never
// because a resource has come. Otherwise client and controller, each a message
// behind the other, could subscribe and take back the same name for ever.
type subscriptions struct {
	names map[string]bool
	// asked are the questions that were put on this stream.
	asked map[string]*question
}

// newSubscriptions begins with what the client holds, where it does not get
// everything anyway, and with the questions that wait for an answer.
func newSubscriptions(held []string, open map[string]*question) *subscriptions {
	s := &subscriptions{names: map[string]bool{}, asked: open}
	for _, name := range held {
		s.names[name] = true
	}
	for name := range open {
		s.names[name] = true
	}
	return s
}

func (s *subscriptions) list() []string { return slices.Sorted(maps.Keys(s.names)) }

// update puts the questions that were not put yet, and takes back names that no
// open question is about and that do not hold.
func (s *subscriptions) update(open map[string]*question, holds func(name string) bool) (subscribe, unsubscribe []string) {
	for name, q := range open {
		if s.asked[name] != q {
			// Also if it is subscribed: the controller answers again.
			subscribe = append(subscribe, name)
			s.names[name] = true
		}
	}
	for name := range s.names {
		if open[name] == nil && !holds(name) {
			unsubscribe = append(unsubscribe, name)
			delete(s.names, name)
		}
	}
	s.asked = open
	slices.Sort(subscribe)
	slices.Sort(unsubscribe)
	return subscribe, unsubscribe
}
