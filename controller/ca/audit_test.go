package ca

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// lockedBuffer is a log that is written and read at one time.
type lockedBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

// refusals are the lines of the log that say who was refused.
func (b *lockedBuffer) refusals(t *testing.T) (lines []map[string]any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for d := json.NewDecoder(bytes.NewReader(b.all.Bytes())); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line["msg"] == "certificate refused" {
			lines = append(lines, line)
		}
	}
	return lines
}

// audited demands that the one refusal there was is counted under its word, and
// written down with node, pod and what was asked for.
func (m *mesh) audited(t *testing.T, reason Refusal, peer Peer, identity string) {
	t.Helper()
	want := "# TYPE ambit_ca_refusals_total counter\n# HELP ambit_ca_refusals_total Certificates that were refused, by reason.\n"
	for _, other := range Refusals {
		n := 0
		if other == reason {
			n = 1
		}
		want += fmt.Sprintf("ambit_ca_refusals_total{reason=%q} %d\n", other, n)
	}
	if err := testutil.GatherAndCompare(m.metrics, strings.NewReader(want), "ambit_ca_refusals_total"); err != nil {
		t.Error(err)
	}
	if reason == NotAuthenticated {
		return // nobody to name
	}
	lines := m.log.refusals(t)
	if len(lines) != 1 {
		t.Fatalf("%d lines about it: %v", len(lines), lines)
	}
	line := lines[0]
	who, _ := line["peer"].(map[string]any)
	if line["audit"] != true || line["reason"] != string(reason) || line["identity"] != identity ||
		who["node"] != peer.Node || who["pod"] != peer.PodName || who["uid"] != peer.PodUID || who["namespace"] != peer.Namespace {
		t.Errorf("written down as %v", line)
	}
}

// Nobody who did not prove who he is gets as far as the audit, and he is counted.
func TestRefusalsWithoutAToken(t *testing.T) {
	m := newMesh(t)
	if _, err := m.client.CreateCertificate(t.Context(), nil); status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
	m.audited(t, NotAuthenticated, Peer{}, "")
}

// A flood of refusals is counted one by one and does not fill the log; that of one
// pod does not keep another's from being written down.
func TestFloodOfRefusals(t *testing.T) {
	m := newMesh(t)
	audit := newAudit(slog.New(slog.NewJSONHandler(&m.log, nil)), nil)
	for range 10 * auditBurst {
		audit.refused(t.Context(), tunnel, payID, NotOnNode, errDenied)
	}
	if n := len(m.log.refusals(t)); n < auditBurst || n > auditBurst+2 {
		t.Errorf("%d lines of %d refusals, want about %d", n, 10*auditBurst, auditBurst)
	}
	if n := testutil.ToFloat64(audit.refusals.WithLabelValues(string(NotOnNode))); n != 10*auditBurst {
		t.Errorf("%v are counted", n)
	}
	audit.refused(t.Context(), cartPod, payID, NotZtunnel, errDenied)
	lines := m.log.refusals(t)
	if last := lines[len(lines)-1]; last["reason"] != string(NotZtunnel) {
		t.Errorf("the other pod's is not written down; the last line is %v", last)
	}
	audit.callers[tunnel.PodUID].lines.SetBurst(10 * auditBurst)
	audit.callers[tunnel.PodUID].lines.SetLimit(1e9)
	audit.refused(t.Context(), tunnel, payID, NotOnNode, errDenied)
	lines = m.log.refusals(t)
	if left, _ := lines[len(lines)-1]["not_logged_before"].(float64); left < 8*auditBurst {
		t.Errorf("the next line says that %v were not written down", left)
	}
	for i := range 2 * maxAudited {
		audit.line(fmt.Sprint(i))
	}
	if n := len(audit.callers); n > maxAudited {
		t.Errorf("%d pods are remembered", n)
	}
}
