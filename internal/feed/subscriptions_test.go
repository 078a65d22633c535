package feed

import (
	"slices"
	"testing"
)

// Each question is put once, and a new one again, even about an address that
// is subscribed to: only then will the controller answer it.
func TestQuestionsArePutOnce(t *testing.T) {
	const key = "/10.244.2.5"
	first, second := map[string]*question{key: {}}, map[string]*question{key: {}}
	s := newSubscriptions([]string{"held", "lost"}, nil)
	steps := []struct {
		what                   string
		open                   map[string]*question
		holds                  []string
		subscribe, unsubscribe []string
	}{
		{"nothing new", nil, []string{"held", "lost"}, nil, nil},
		{"a question", first, []string{"held", "lost"}, []string{key}, nil},
		{"the same question", first, []string{"held"}, nil, []string{"lost"}},
		{"answered: found", nil, []string{"held", key}, nil, nil},
		{"a new question, before the loss was noticed", second, []string{"held"}, []string{key}, nil},
		{"answered: gone", nil, []string{"held"}, nil, []string{key}},
		{"what comes unasked is not subscribed to", nil, []string{"held", "unasked", key}, nil, nil},
	}
	for _, step := range steps {
		subscribe, unsubscribe := s.update(step.open, func(name string) bool { return slices.Contains(step.holds, name) })
		if !slices.Equal(subscribe, step.subscribe) || !slices.Equal(unsubscribe, step.unsubscribe) {
			t.Errorf("%s: subscribes %v, unsubscribes %v; want %v, %v", step.what, subscribe, unsubscribe, step.subscribe, step.unsubscribe)
		}
	}
}

// A stream begins with the questions that wait: they are put by its first request.
func TestStreamBeginsWithOpenQuestions(t *testing.T) {
	open := map[string]*question{"/10.244.2.5": {}}
	s := newSubscriptions([]string{"held"}, open)
	if got := s.list(); !slices.Equal(got, []string{"/10.244.2.5", "held"}) {
		t.Errorf("begins with %v", got)
	}
	if subscribe, unsubscribe := s.update(open, func(string) bool { return true }); len(subscribe)+len(unsubscribe) != 0 {
		t.Errorf("then subscribes %v, unsubscribes %v", subscribe, unsubscribe)
	}
}
