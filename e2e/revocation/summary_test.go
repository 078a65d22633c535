package main

import (
	"testing"
	"time"
)

func TestPercentilesAreOfTheNearestRank(t *testing.T) {
	var all []time.Duration
	for i := 200; i > 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	if got, want := summarize(all), (summary{P50: 100, P99: 198, Max: 200, Trials: 200}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summarize(all[:1]); got.P50 != 200 || got.P99 != 200 {
		t.Errorf("of one: %+v", got)
	}
	if got := summarize(nil); got != (summary{}) {
		t.Errorf("of none: %+v", got)
	}
}
