package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// checkedHeader is on what came through the waypoint of a test: its route adds it,
// and no client does.
const checkedHeader = "X-Checked"

// ledger counts what came to a server, for who may not trust what clients say.
type ledger struct{ checked, unchecked, never atomic.Int64 }

// work answers who served, and whether the request had been checked.
func (l *ledger) work(w http.ResponseWriter, r *http.Request) {
	checked := r.Header.Get(checkedHeader) != ""
	if checked {
		l.checked.Add(1)
	} else {
		l.unchecked.Add(1)
	}
	json.NewEncoder(w).Encode(worked{self(), checked})
}

// worked is the answer.
type worked struct {
	Served  string `json:"served"`
	Checked bool   `json:"checked"`
}

// forbidden is what policy lets nobody reach.
func (l *ledger) forbidden(w http.ResponseWriter, r *http.Request) { l.never.Add(1) }

func (l *ledger) tell(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(map[string]int64{"checked": l.checked.Load(), "unchecked": l.unchecked.Load(), "forbidden": l.never.Load()})
}

// stream sends a line every 100 ms, in a body without an end.
func stream(w http.ResponseWriter, r *http.Request) {
	for ticker := time.NewTicker(100 * time.Millisecond); ; {
		if _, err := fmt.Fprintln(w, time.Now().UnixMicro()); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}
