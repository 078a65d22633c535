//go:build e2e

package e2e

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// live is a connection that a pod holds, and what it saw of its end.
type live struct {
	*testing.T
	lines *bufio.Reader
	wait  func() error
}

// hold has a pod open a connection to a server's clock.
func (p *place) hold(from, server string) live {
	p.Helper()
	client := p.bed.Command(p.Context(), "kubectl", "-n", p.name, "exec", from, "--", "/usr/local/bin/shop", "tool", "until-ended", p.ip(server)+":7004")
	client.Stderr = os.Stderr
	said, err := client.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := client.Start(); err != nil {
		p.Fatal(err)
	}
	lines := bufio.NewReader(said)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		p.Fatalf("%s said %q, %v", from, line, err)
	}
	return live{p.T, lines, client.Wait}
}

// ended waits for the end.
func (l live) ended() (last time.Time, how string) {
	l.Helper()
	var seen struct {
		LastByte time.Time `json:"last_byte"`
		Ended    string
	}
	if err := errors.Join(json.NewDecoder(l.lines).Decode(&seen), l.wait()); err != nil {
		l.Fatal(err)
	}
	return seen.LastByte, seen.Ended
}

func (p *place) serial(pod string) string {
	p.Helper()
	return strings.TrimSpace(p.in("get", "workloads.ambit.mesh", pod, "-o", "jsonpath={.status.certificateSerial}"))
}

// A certificate is revoked: what lives with it is cut, what does not goes on, and
// the pod has another certificate and connects again; also when it is the
// server's, and when an identity is revoked. What is revoked stays so while the
// controller is down and ztunnel starts anew.
func TestRevokedCertificatesAreCutAndReplaced(t *testing.T) {
	p := enrolledPair(t, "e2e-revoked")
	p.apply(pod(podOptions{name: "bystander", node: "n3", role: "wires"}))
	p.ready("bystander")
	p.captured("bystander")
	goesOn := p.hold("bystander", "server")
	for _, c := range []struct {
		name, of string
		revoke   func(serial string) []string
	}{
		{"the client's, by its pod", "client", func(string) []string { return []string{"--pod", p.name + "/client"} }},
		{"the client's, by its number", "client", func(serial string) []string { return []string{strings.ToUpper(serial)} }},
		{"the client's identity", "client", func(string) []string {
			return []string{"--identity", "spiffe://cluster.local/ns/" + p.name + "/sa/client", "--note", "a test"}
		}},
	} {
		p.eventually("the serial number is known", func() error {
			if p.serial(c.of) == "" {
				return errors.New("it is empty")
			}
			return nil
		})
		before := p.serial(c.of)
		connection := p.hold("client", "server")
		began := time.Now()
		out, err := p.bed.Run(t.Context(), "ambit", append([]string{"ca", "revoke", "--yes"}, c.revoke(before)...)...)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		known := time.Since(began)
		if !strings.Contains(out, "in force on every node") {
			t.Errorf("%s: %s", c.name, out)
		}
		last, how := connection.ended()
		t.Logf("%s: the command took %s, the last byte came after %s", c.name, known, last.Sub(began))
		if !strings.Contains(how, "ECONNRESET") {
			t.Errorf("%s: the connection ended with %q, want a reset", c.name, how)
		}
		if last.After(began.Add(known + time.Second)) {
			t.Errorf("%s: cut later than a second after every node knew", c.name)
		}
		p.answers("client", "http://server:8080/whoami")
		p.within(time.Minute, "another certificate", func() error {
			if now := p.serial(c.of); now == before || now == "" {
				return fmt.Errorf("it is %q", now)
			}
			return nil
		})
	}
	if _, err := p.bed.Run(t.Context(), "ambit", "ca", "revoke", "--yes", "seven"); err == nil || !strings.Contains(err.Error(), "hex digits") {
		t.Errorf("a number that is none: %v", err)
	}
	if out, err := p.bed.Run(t.Context(), "ambit", "ca", "status"); err != nil || !strings.Contains(out, "/sa/client") || !strings.Contains(out, "a test") {
		t.Errorf("ambit ca status: %v\n%s", err, out)
	}
	p.checkPasses()

	// The other end of the tunnels: everything that lives to the server ends.
	toServer, began := p.hold("client", "server"), time.Now()
	if _, err := p.bed.Run(t.Context(), "ambit", "ca", "revoke", "--yes", "--pod", p.name+"/server"); err != nil {
		t.Fatal(err)
	}
	for _, connection := range []live{toServer, goesOn} {
		// The bystander's went on until then, whatever was revoked of the client's.
		if last, how := connection.ended(); !strings.Contains(how, "ECONNRESET") || last.Before(began) {
			t.Errorf("the server's is revoked: %q, %s before", how, began.Sub(last))
		}
	}
	p.answers("client", "http://server:8080/whoami")
	p.answers("bystander", "http://server:8080/whoami")

	// What somebody else does to the list is undone.
	p.kubectl("-n", "ambit-system", "delete", "configmap", "ambit-ca-revoked")
	p.eventually("the list is put back", func() error {
		out, err := p.bed.Run(t.Context(), "ambit", "ca", "status")
		if err == nil && !strings.Contains(out, "/sa/client") {
			err = errors.New(out)
		}
		return err
	})
}

// A key that is stolen from a node's memory opens the server's door until it is
// revoked, and not after that: nor while the controller is down and the server's
// ztunnel has started anew. The pod that it was stolen from connects all the while.
func TestAStolenKeyIsWorthNothingOnceItIsRevoked(t *testing.T) {
	p, outside := enrolledPair(t, "e2e-stolen"), newPlace(t, "e2e-thief")
	outside.apply(pod(podOptions{name: "thief", node: "n3", role: "wires"}))
	outside.ready("thief")
	name := sha256.Sum256([]byte("spiffe://cluster.local/ns/" + p.name + "/sa/client"))
	stolen := p.onNode("n1", "cat", "/run/ambit/certs/"+hex.EncodeToString(name[:])+".secret")
	door := net.JoinHostPort(p.ip("server"), "15008")
	try := func() (string, error) {
		cmd := p.bed.Command(t.Context(), "kubectl", "-n", outside.name, "exec", "-i", "thief", "--", "/usr/local/bin/shop", "tool", "present", door)
		cmd.Stdin = strings.NewReader(stolen)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	refused := func(when string) {
		t.Helper()
		if out, err := try(); err == nil || !strings.Contains(out, "refused") || !strings.Contains(out, "certificate") {
			t.Errorf("%s: %v %s", when, err, out)
		}
		p.answers("client", "http://server:8080/whoami")
	}
	if out, err := try(); err != nil || !strings.Contains(out, "let in") {
		t.Fatalf("before it is revoked: %v %s", err, out)
	}
	p.eventually("the serial number is known", func() error {
		_, err := p.bed.Run(t.Context(), "ambit", "ca", "revoke", "--yes", "--pod", p.name+"/client")
		return err
	})
	refused("once it is revoked")

	time.Sleep(2 * time.Second) // for what nodes know to be on their disks
	p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=0")
	defer func() {
		p.kubectl("-n", "ambit-system", "scale", "deployment/controller", "--replicas=2")
		p.meshReady()
		p.checkPasses() // every node follows it
	}()
	p.kubectl("-n", "ambit-system", "wait", "--for=delete", "pod", "-l", "app=controller", "--timeout=60s")
	refused("without the controller")
	p.kubectl("-n", "ambit-system", "delete", "pod", p.ztunnel("n2"), "--grace-period=0", "--force")
	p.eventually("a ztunnel that started without a controller is ready", func() error {
		_, err := p.bed.Kubectl(t.Context(), "-n", "ambit-system", "rollout", "status", "daemonset/ztunnel", "--timeout=5s")
		return err
	})
	refused("by a ztunnel that started without the controller")
}

// An intermediate whose key has leaked is revoked once another one signs: what it
// signed is replaced everywhere, the controller's own certificate included.
func TestARevokedIntermediateTakesItsCertificatesAlong(t *testing.T) {
	p := enrolledPair(t, "e2e-intermediate")
	signing := func() string {
		out, err := p.bed.Run(t.Context(), "ambit", "ca", "status", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var status struct{ Issuer struct{ Serial string } }
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatal(err)
		}
		return status.Issuer.Serial
	}
	leaked := signing()
	if _, err := p.bed.Run(t.Context(), "ambit", "ca", "revoke", "--yes", leaked); err == nil || !strings.Contains(err.Error(), "ambit ca rotate") {
		t.Fatalf("what signs is revoked: %v", err)
	}
	if _, err := p.bed.Run(t.Context(), "ambit", "ca", "rotate", "--intermediate"); err != nil {
		t.Fatal(err)
	}
	p.eventually("another intermediate signs", func() error {
		if signing() == leaked {
			return errors.New("it is the one of before")
		}
		return nil
	})
	p.eventually("the serial number is known", func() error {
		if p.serial("client") == "" {
			return errors.New("it is empty")
		}
		return nil
	})
	before, connection := p.serial("client"), p.hold("client", "server")
	if _, err := p.bed.Run(t.Context(), "ambit", "ca", "revoke", "--yes", leaked); err != nil {
		t.Fatal(err)
	}
	if _, how := connection.ended(); !strings.Contains(how, "ECONNRESET") {
		t.Errorf("the connection ended with %q, want a reset", how)
	}
	p.answers("client", "http://server:8080/whoami")
	p.within(time.Minute, "another certificate", func() error {
		if now := p.serial("client"); now == before || now == "" {
			return fmt.Errorf("it is %q", now)
		}
		return nil
	})
	p.kubectl("-n", "ambit-system", "delete", "pod", p.ztunnel("n2"))
	p.meshReady()
	p.answers("client", "http://server:8080/whoami")
	p.checkPasses()
}
