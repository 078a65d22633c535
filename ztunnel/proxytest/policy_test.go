package proxytest

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// in is a way into a pod, as a client takes it.
type in struct {
	mesh           *Mesh
	client, server *Pod
	connect        func() *net.TCPConn
	refused        func()
}

// intoPods are all ways into a pod.
var intoPods = []struct {
	name string
	make func(*testing.T) in
}{
	{"tunnel", func(t *testing.T) in { return captured(t) }},
	{"local", func(t *testing.T) in { return captured(t, On("one-node")) }},
	{"plaintext", func(t *testing.T) in {
		m := New(t)
		i := in{mesh: m, client: m.Pod("client", Plain), server: m.Pod("server").Start()}
		i.connect = func() *net.TCPConn { return i.client.ConnectPlaintext(i.server.Addr) }
		i.refused = func() { i.client.RefusedPlaintext(i.server.Addr) }
		return i
	}},
}

func captured(t *testing.T, changes ...func(*api.Workload)) in {
	m := New(t)
	i := in{mesh: m, client: m.Pod("client", changes...).Start(), server: m.Pod("server", changes...).Start()}
	i.connect = func() *net.TCPConn { return i.client.Connect(i.server.Addr) }
	i.refused = func() { i.client.Refused(i.server.Addr) }
	return i
}

func overEveryWayIn(t *testing.T, test func(*testing.T, in)) {
	for _, way := range intoPods {
		t.Run(way.name, func(t *testing.T) { test(t, way.make(t)) })
	}
}

// policyOf one match.
func policyOf(name string, action security.Action, m *security.Match) *security.Authorization {
	return &security.Authorization{
		Namespace: "shop", Name: name, Scope: security.Scope_NAMESPACE, Action: action,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}},
	}
}

func denyFrom(p *Pod) *security.Authorization {
	return policyOf("no-client", security.Action_DENY, &security.Match{
		SourceIps: []*security.Address{{Address: p.Addr.AsSlice(), Length: uint32(p.Addr.BitLen())}},
	})
}

func (m *Mesh) unpublish(typeURL, name string) {
	m.Store.Apply(workload.Delta{Type: typeURL, Removed: []string{name}})
}

// attach names policies on a pod's workload.
func (p *Pod) attach(policies ...string) {
	p.published = proto.CloneOf(p.published)
	p.published.AuthorizationPolicies = policies
	p.mesh.Publish(p.published)
}

func live(t *testing.T, i in) *net.TCPConn {
	t.Helper()
	conn := i.connect()
	say(t, conn, "x")
	hear(t, conn, "x")
	return conn
}

// ended waits for the record of a connection that policy refused or ended.
func (m *Mesh) ended(reason string) map[string]any {
	m.t.Helper()
	var found map[string]any
	m.await("a connection that ended with "+reason, func() bool {
		for _, line := range m.lines.access(m.t) {
			if line["direction"] == "inbound" && line["reason"] == reason {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// A DENY ends what lives and refuses what is new, and nothing else; when it is gone,
// all is as before.
func TestDenyEndsLiveConnections(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		conn := live(t, i)
		i.mesh.Publish(policyOf("no-other", security.Action_DENY, &security.Match{DestinationPorts: []uint32{1}}))
		say(t, conn, "y")
		hear(t, conn, "y")

		began := time.Now()
		i.mesh.Publish(denyFrom(i.client))
		hearReset(t, conn)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
		line := i.mesh.ended("PolicyDenied")
		want(t, line, map[string]any{"response_flags": "DENY", "error": "no longer admitted: denied by policy shop/no-client"})
		if n := i.mesh.metric("ambit_authorization_decisions_total", "decision", "cut"); n != 1 {
			t.Errorf("%v cuts counted", n)
		}
		i.refused()
		i.mesh.await("the refusal in the metrics", func() bool {
			return i.mesh.metric("ambit_authorization_decisions_total", "decision", "refused") == 1
		})
		i.mesh.unpublish(workload.AuthorizationType, "shop/no-client")
		live(t, i)
	})
}

// An ALLOW lets in those whom it names, by the identity that was proven.
func TestAllowDemandsAnIdentity(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		conn := live(t, i)
		i.mesh.Publish(policyOf("only-client", security.Action_ALLOW, &security.Match{
			Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: strings.TrimPrefix(i.client.ID.String(), "spiffe://")}}},
		}))
		if i.client.Outbound == nil {
			hearReset(t, conn)
			i.refused()
			return
		}
		say(t, conn, "y")
		hear(t, conn, "y")
		live(t, i)
		i.mesh.Publish(policyOf("only-client", security.Action_ALLOW, &security.Match{
			ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "another"}},
		}))
		hearReset(t, conn)
		i.refused()
		if line := i.mesh.ended("PolicyDenied"); !strings.Contains(line["error"].(string), "shop/only-client") {
			t.Errorf("logged %v", line)
		}
	})
}

// Strict mutual TLS is a policy that is attached to the workload.
func TestStrictRefusesPlaintext(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		conn := live(t, i)
		strict := policyOf("mutual_tls_strict", security.Action_DENY, &security.Match{
			NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}},
		})
		strict.Scope = security.Scope_WORKLOAD_SELECTOR
		i.mesh.Publish(strict)
		say(t, conn, "y")
		hear(t, conn, "y") // it is attached to nobody
		i.server.attach("shop/mutual_tls_strict")
		if i.client.Outbound != nil {
			say(t, conn, "z")
			hear(t, conn, "z")
			live(t, i)
			return
		}
		hearReset(t, conn)
		i.refused()
	})
}

func TestDryRunIsReportedOnly(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		deny := denyFrom(i.client)
		deny.DryRun = true
		i.mesh.Publish(deny)
		live(t, i)
		live(t, i)
		i.mesh.await("the dry run in the metrics", func() bool {
			return i.mesh.metric("ambit_authorization_dry_run_denials_total", "policy", "shop/no-client") == 2
		})
		if n := strings.Count(i.mesh.lines.text(), `"connection would be denied"`); n != 1 {
			t.Errorf("told of %d times", n)
		}
		if !strings.Contains(i.mesh.lines.text(), `"destination":"shop/server"`) {
			t.Errorf("the destination is not named: %s", i.mesh.lines.text())
		}
	})
}

// A policy that is attached and has not come holds a connection until it comes.
func TestLatePolicyHoldsConnections(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		i.server.attach("shop/late")
		conn := i.connect()
		say(t, conn, "x")
		conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || !isTimeout(err) {
			t.Fatalf("not held: %d bytes, %v", n, err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		late := policyOf("late", security.Action_DENY, &security.Match{DestinationPorts: []uint32{1}})
		late.Scope = security.Scope_WORKLOAD_SELECTOR
		i.mesh.Publish(late)
		hear(t, conn, "x")
		conn.Close()
		i.mesh.ended("Closed")

		i.server.attach("shop/never")
		i.refused()
		want(t, i.mesh.ended("PolicyMissing"), map[string]any{
			"response_flags": "DENY", "error": "policy shop/never applies to the workload and has not come",
		})
	})
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}

// Nobody knows what applies before the configuration is there.
func TestNothingPassesBeforeTheConfiguration(t *testing.T) {
	synced := make(chan struct{})
	m := newMesh(t, synced)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	client.Refused(server.Addr)
	want(t, m.ended("PolicyMissing"), map[string]any{"error": "no configuration has come yet"})
	time.AfterFunc(100*time.Millisecond, func() { close(synced) })
	live(t, in{connect: func() *net.TCPConn { return client.Connect(server.Addr) }})
}

// What cannot be read denies, to what lives too.
func TestMalformedPolicyDenies(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		echoing(i.server)
		conn := live(t, i)
		rejected := i.mesh.Store.Apply(workload.Delta{Type: workload.AuthorizationType, Upserts: []workload.Resource{{
			Name: "shop/broken", Version: "1", Body: &anypb.Any{TypeUrl: workload.AuthorizationType, Value: []byte("\xff\xff")},
		}}})
		if len(rejected) != 1 {
			t.Fatalf("rejected %v", rejected)
		}
		hearReset(t, conn)
		i.refused()
		if line := i.mesh.ended("PolicyDenied"); !strings.Contains(line["error"].(string), "shop/broken, which could not be read") {
			t.Errorf("logged %v", line)
		}
	})
}

// A connection that is admitted by one snapshot while the next one forbids it is
// found by nobody who looks at what lives: it must look itself.
func TestDecisionsThatAreOutrunByAChange(t *testing.T) {
	overEveryWayIn(t, func(t *testing.T, i in) {
		var got atomic.Int64
		i.server.App(func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			got.Add(n)
			c.Close()
		})
		i.mesh.SetAdmitted(func(*conns.Attempt) {
			i.mesh.Publish(denyFrom(i.client))
			time.Sleep(100 * time.Millisecond) // whoever judges what lives has done so
		})
		conn := i.connect()
		conn.Write([]byte("secret"))
		hearReset(t, conn)
		i.mesh.ended("PolicyDenied")
		if n := got.Load(); n > 0 {
			t.Errorf("%d bytes reached the application", n)
		}
	})
}

// A root that is taken back takes along the tunnels of those whom it vouched for.
func TestDistrustEndsTunnels(t *testing.T) {
	i := captured(t)
	echoing(i.server)
	conns := []*net.TCPConn{live(t, i), live(t, i)}
	i.mesh.Trust(i.mesh.CA) // nothing new
	for _, conn := range conns {
		say(t, conn, "y")
		hear(t, conn, "y")
	}
	i.mesh.Trust(certstest.NewCA(t, trustDomain))
	for _, conn := range conns {
		hearReset(t, conn)
	}
	// Each side judges the other's certificate; one of them is the first.
	i.mesh.await("connections that ended with Distrusted", func() bool {
		return i.mesh.metric("ambit_connection_ends_total", "reason", "Distrusted") >= 2
	})
}

// Many live connections end with one change, and only those that it is about.
func TestManyEndTogether(t *testing.T) {
	i := captured(t)
	echoing(i.server)
	other := i.mesh.Pod("other").Start()
	kept := live(t, in{connect: func() *net.TCPConn { return other.Connect(i.server.Addr) }})
	var all []*net.TCPConn
	for range 300 {
		all = append(all, live(t, i))
	}
	began := time.Now()
	i.mesh.Publish(denyFrom(i.client))
	for _, conn := range all {
		hearReset(t, conn)
	}
	t.Logf("300 connections over tunnels ended within %s", time.Since(began))
	say(t, kept, "y")
	hear(t, kept, "y")
}
