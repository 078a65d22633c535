package workloads

import (
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

func workload(state v1alpha1.State) v1alpha1.Workload {
	w := v1alpha1.Workload{
		Spec:   v1alpha1.WorkloadSpec{Node: "n1", Addresses: []string{"10.0.0.7"}, Identity: "spiffe://cluster.local/ns/shop/sa/web"},
		Status: v1alpha1.WorkloadStatus{State: state, Summary: string(state), Protocol: v1alpha1.ProtocolHBONE},
	}
	w.Namespace, w.Name = "shop", "web-1"
	return w
}

func TestAStateIsStaleOnceItsNodeFellSilent(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		state v1alpha1.State
		beats map[string]time.Time
		want  v1alpha1.State
	}{
		"heard of just now":           {v1alpha1.StateCaptured, map[string]time.Time{"n1": now.Add(-time.Second)}, v1alpha1.StateCaptured},
		"silent":                      {v1alpha1.StateCaptured, map[string]time.Time{"n1": now.Add(-time.Minute)}, v1alpha1.StateStale},
		"another node is silent":      {v1alpha1.StateCaptured, map[string]time.Time{"n1": now, "n2": now.Add(-time.Minute)}, v1alpha1.StateCaptured},
		"nothing observed to be lost": {v1alpha1.StateNotEnrolled, map[string]time.Time{"n1": now.Add(-time.Minute)}, v1alpha1.StateNotEnrolled},
	} {
		w := workload(c.state)
		markStale(&w, c.beats, now)
		if w.Status.State != c.want {
			t.Errorf("%s: %s, want %s", name, w.Status.State, c.want)
		}
		if w.Status.Protocol != v1alpha1.ProtocolHBONE {
			t.Errorf("%s: protocol %s: a silent node is no reason for plaintext", name, w.Status.Protocol)
		}
	}
}

func TestTheTable(t *testing.T) {
	var out strings.Builder
	if err := table(&out, []v1alpha1.Workload{workload(v1alpha1.StateCaptured)}, true, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NAMESPACE", "IDENTITY", "CERT-EXPIRES", "shop", "web-1", "10.0.0.7", "HBONE", "Captured", "spiffe://cluster.local/ns/shop/sa/web"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestOlderConnectionsAreListed(t *testing.T) {
	w := workload(v1alpha1.StateCaptured)
	w.Status.OlderConnections, w.Status.FirstOlderConnections = 3, []string{"10.0.0.7:4711 -> 10.0.0.8:5432"}
	var out strings.Builder
	if err := older(&out, []v1alpha1.Workload{w, workload(v1alpha1.StateCaptured)}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "10.0.0.8:5432") || !strings.Contains(lines[2], "and 2 more") || !strings.Contains(lines[2], "n1") {
		t.Errorf("%s", out.String())
	}
	out.Reset()
	if err := table(&out, []v1alpha1.Workload{w}, false, time.Now()); err != nil || !strings.Contains(out.String(), "OLDER") {
		t.Errorf("%v: %s", err, out.String())
	}
}
