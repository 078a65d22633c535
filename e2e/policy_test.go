//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// From kubectl apply of a DENY on, what lives is cut and what is new refused; from its deletion on, all is as before.
func TestADenyEndsLiveConnections(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-deny")
	server := p.ip("server")
	client := p.bed.Command(t.Context(), "kubectl", "-n", p.name, "exec", "client", "--", "/usr/local/bin/shop", "tool", "until-refused", server+":7004", server+":7001")
	client.Stderr = os.Stderr
	said, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the client said %q, %v", line, err)
	}
	began := time.Now()
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  action: DENY
  rules:
  - to: [{operation: {ports: ["7001", "7004"]}}]
`)
	var seen struct {
		LastByte     time.Time `json:"last_byte"`
		FirstRefused time.Time `json:"first_refused"`
		Ended        string
	}
	if err := json.NewDecoder(lines).Decode(&seen); err != nil {
		t.Fatal(err)
	}
	if err := client.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("since the beginning of kubectl apply: last byte after %s, first refusal after %s", seen.LastByte.Sub(began), seen.FirstRefused.Sub(began))
	if !strings.Contains(seen.Ended, "ECONNRESET") {
		t.Errorf("the live connection ended with %q, want a reset", seen.Ended)
	}
	p.answers("client", "http://server:8080/whoami") // another port
	p.in("delete", "authorizationpolicies.ambit.mesh", "nobody")
	p.eventually("without the policy", func() error { _, err := p.tool("client", "dial", server+":7004"); return err })
}

// STRICT refuses plaintext, and nothing that comes through tunnels.
func TestStrictRefusesPlaintext(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-strict")
	outside := newPlace(t, "e2e-strict-outside")
	outside.apply(pair())
	outside.ready("client")
	url := "http://" + p.ip("server") + ":8080/whoami"
	outside.answers("client", url)
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`)
	p.eventually("plaintext is refused", func() error {
		if out, err := outside.tool("client", "get", "-timeout", "3s", url); err == nil {
			return fmt.Errorf("answered %s", out)
		}
		return nil
	})
	p.must("client", "get", url)
	if out, err := outside.tool("client", "get", "-timeout", "3s", url); err == nil {
		t.Errorf("plaintext was answered by %s", out)
	}
}

// What a NodePort leads to a strict pod comes in plaintext, past what the sender's node could hold: the pod's own ztunnel refuses it,
// from outside of the mesh and from within.
func TestAStrictPodRefusesWhatANodePortLeadsToIt(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-strict-nodeport")
	outside := newPlace(t, "e2e-strict-nodeport-outside")
	outside.apply(pair())
	outside.ready("client")
	const port = 30482
	p.apply(fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: np}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: %d}]}
`, port))
	var urls []string
	for _, node := range []string{"172.30.0.11", "172.30.0.12"} {
		urls = append(urls, fmt.Sprintf("http://%s:%d/whoami", node, port))
	}
	for _, url := range urls {
		outside.answers("client", url)
		p.answers("client", url)
	}
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: PeerAuthentication
metadata: {name: default}
spec: {selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}
`)
	for _, url := range urls {
		for from, place := range map[string]*place{"outside": outside, "the mesh": p} {
			p.eventually("plaintext from "+from+" by "+url+" is refused", func() error {
				if out, err := place.tool("client", "get", "-timeout", "3s", url); err == nil {
					return fmt.Errorf("answered %s", out)
				}
				return nil
			})
		}
	}
	p.must("client", "get", "http://"+p.ip("server")+":8080/whoami")
}

// A dry run lets everything in, and says in metrics and log what it would not have.
func TestADryRunIsCounted(t *testing.T) {
	t.Parallel()
	p := enrolledPair(t, "e2e-dry-run")
	p.apply(`
apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: would-deny}
spec:
  action: AUDIT
  rules:
  - to: [{operation: {ports: ["8080"]}}]
`)
	ztunnel := p.ztunnel("n2")
	metrics := "http://" + strings.TrimSpace(p.kubectl("-n", "ambit-system", "get", "pod", ztunnel, "-o", "jsonpath={.status.podIP}")) + ":15020/metrics"
	const series = `ambit_authorization_dry_run_denials_total{destination="e2e-dry-run/server",policy="e2e-dry-run/would-deny",source="spiffe://cluster.local/ns/e2e-dry-run/sa/`
	p.eventually("the dry run is counted", func() error {
		p.must("client", "get", "http://server:8080/whoami")
		if all := p.must("client", "get", metrics); !strings.Contains(all, series) {
			return fmt.Errorf("no series %s", series)
		}
		return nil
	})
	if log := p.kubectl("-n", "ambit-system", "logs", ztunnel, "--tail=-1"); !strings.Contains(log, `"connection would be denied"`) || !strings.Contains(log, "e2e-dry-run/would-deny") {
		t.Error("nothing in the log")
	}
}
