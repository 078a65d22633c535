//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/apps"
)

// shopStats is what the shopper tells of its connections.
type shopStats struct {
	LongLived, Fresh map[string]struct {
		Exchanges, Failures int
		LastError, Local    string
	}
}

func (p *place) shopStats() (s shopStats, err error) {
	out, err := p.tool("deploy/shopper", "get", "http://127.0.0.1:8081/stats")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err == nil && (len(s.LongLived) < 4 || len(s.Fresh) < 2) {
		err = fmt.Errorf("not every kind of connection is open yet: %+v", s)
	}
	return s, err
}

func (s shopStats) failures() (total int) {
	for _, line := range s.LongLived {
		total += line.Failures
	}
	for _, line := range s.Fresh {
		total += line.Failures
	}
	return total
}

// shop deploys the shop and returns once the shopper uses all of it.
func (p *place) shop() {
	p.Helper()
	p.apply(string(apps.Shop))
	p.in("wait", "--for=condition=Available", "deployment", "--all", "--timeout=90s")
	p.eventually("the shopper uses every service", func() error { _, err := p.shopStats(); return err })
}

func (p *place) pods() []string {
	p.Helper()
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(p.in("get", "pods", "-o", "json")), &list); err != nil {
		p.Fatal(err)
	}
	var names []string
	for _, item := range list.Items {
		names = append(names, item.Metadata.Name)
	}
	return names
}

// While a shopper holds connections of four protocols and opens new ones all
// the time, its namespace goes into the mesh and out of it: not one connection
// breaks, and not one new one fails.
func TestEnrolAndUnenrolUnderLoadBreaksNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-enrol")
	p.shop()
	pods := p.pods()
	before, err := p.shopStats()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p.enrol(pods...)
	t.Logf("%d pods captured %s after the label", len(pods), time.Since(start))
	time.Sleep(2 * time.Second)
	enrolled := p.unharmed(before)

	p.label(modeLabel + "-")
	p.released(pods...)
	time.Sleep(2 * time.Second)
	p.unharmed(enrolled)
}

// unharmed fails unless every connection of before lives on, and no new one failed.
func (p *place) unharmed(before shopStats) shopStats {
	p.Helper()
	now, err := p.shopStats()
	if err != nil {
		p.Fatal(err)
	}
	for name, was := range before.LongLived {
		if is := now.LongLived[name]; is.Local != was.Local || is.Exchanges <= was.Exchanges {
			p.Errorf("the long-lived %s connection did not live on: before %+v, after %+v", name, was, is)
		}
	}
	for name, was := range before.Fresh {
		if is := now.Fresh[name]; is.Exchanges <= was.Exchanges {
			p.Errorf("no new %s connection since: before %+v, after %+v", name, was, is)
		}
	}
	if now.failures() > 0 {
		p.Errorf("connections failed: %+v", now)
	}
	return now
}

func TestAPodCanOptOut(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-optout", modeLabel+"=ambient")
	p.apply(pair() + pod(podOptions{name: "out", node: "n2", role: "wires", labels: []string{modeLabel + ": none"}}))
	p.ready("client", "server", "out")
	p.captured("client", "server")
	o, err := p.workload("out")
	if err != nil {
		t.Fatal(err)
	}
	if o.State != "NotEnrolled" || o.Protocol == "HBONE" {
		t.Errorf("the pod that opted out is %+v", o)
	}
	p.must("client", "get", "http://"+p.ip("out")+":8080/whoami")
	p.must("out", "get", "http://"+p.ip("server")+":8080/whoami")
}

func TestAnUnknownLabelValueIsRefusedAloud(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-unknown", modeLabel+"=ambient")
	p.apply(pod(podOptions{name: "odd", node: "n1", role: "wires", labels: []string{modeLabel + ": perhaps"}}))
	p.eventually("the pod's state names the value", func() error {
		o, err := p.workload("odd")
		if err == nil && (o.State != "Failed" || o.Protocol == "HBONE") {
			err = fmt.Errorf("it is %+v", o)
		}
		return err
	})
}

func TestANewPodIsCapturedBeforeItStarts(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-new", modeLabel+"=ambient")
	p.pair()
	p.captured("client", "server")
	p.assertTunnelled(func() { p.answers("client", "http://server:8080/whoami") })
}

func TestADeletedPodLeavesNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t, "e2e-delete", modeLabel+"=ambient")
	p.pair()
	p.captured("client", "server")
	uid := p.in("get", "pod", "server", "-o", "jsonpath={.metadata.uid}")
	p.in("delete", "pod", "server", "--wait")
	p.eventually("the workload is gone", func() error {
		if o, err := p.workload("server"); err == nil {
			return fmt.Errorf("it is still there: %+v", o)
		}
		return nil
	})
	p.eventually("its pins are gone", func() error {
		out, err := p.bed.Run(p.Context(), "cluster", "exec", "n2", "find", "/sys/fs/bpf/ambit", "-path", "*"+uid+"*")
		if err == nil && out != "" {
			err = fmt.Errorf("still pinned: %s", out)
		}
		return err
	})
}
