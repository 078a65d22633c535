package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
)

// Applications must not tell from their sockets whether there is a mesh. Scripts (fidelity_script_test.go) say what two
// applications do, and what plain TCP then shows them; they are played on every path, and on the one without a mesh it
// is the kernel alone that vouches for the expectation.
//
//	fidelity_close_test.go   how connections end
//	fidelity_bytes_test.go   what goes through them
//	fidelity_refuse_test.go  connections that cannot stand
//	fidelity_stall_test.go   readers that do not read
//	fidelity_wire_test.go    losses, MTUs, silence
//	fidelity_many_test.go    many connections

const appPort = 8080

// A path is how a client's pod reaches a server's.
type path struct {
	name           string
	client, server *stage
	// transports are how a connection is carried, as both of its ends record it.
	transports string
	// Of the mesh's side of both pods; nil without a mesh.
	running []pods.Running
}

const (
	hbonePath = "hbone"
	localPath = "local"
	nonePath  = "none"
)

// pathSpecs says for each path on which node the server is and how a connection goes.
var pathSpecs = []struct{ name, serverNode, transports string }{
	{hbonePath, "b", "inbound hbone, outbound hbone"},
	{localPath, "a", "inbound local, outbound local"},
	{nonePath, "b", ""},
}

// paths makes pods for all three paths. before, if set, is done to the pods before they are captured.
func (b *bed) paths(before func(*netnstest.Pod)) map[string]*path {
	b.t.Helper()
	all := map[string]*path{}
	for _, spec := range pathSpecs {
		all[spec.name] = b.path(spec.name, before)
	}
	return all
}

// path makes pods for one of them.
func (b *bed) path(name string, before func(*netnstest.Pod)) *path {
	b.t.Helper()
	for _, spec := range pathSpecs {
		if spec.name != name {
			continue
		}
		p := &path{name: spec.name, transports: spec.transports}
		for _, at := range []struct {
			stage      **stage
			node, name string
		}{{&p.client, "a", "client"}, {&p.server, spec.serverNode, "server"}} {
			b.made++
			pod := b.network.Node(at.node).Pod(at.name + "-" + name + "-" + string(rune('a'+b.made)))
			if err := pod.Do(usualBuffers); err != nil {
				b.t.Fatal(err)
			}
			if before != nil {
				before(pod)
			}
			*at.stage = &stage{pod: pod}
			if name != nonePath {
				p.running = append(p.running, b.capture(pod))
				b.publish(pod, api.TunnelProtocol_HBONE)
			}
		}
		return p
	}
	b.t.Fatalf("no path %q", name)
	return nil
}

// usualBuffers sets the kernel's own limits of what it holds for a socket, in bytes: machines differ.
func usualBuffers() error {
	return errors.Join(os.WriteFile("/proc/sys/net/ipv4/tcp_rmem", []byte("4096 131072 6291456"), 0),
		os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", []byte("4096 16384 4194304"), 0))
}

// to is the server's address.
func (p *path) to() netip.AddrPort { return netip.AddrPortFrom(p.server.pod.IPv4, appPort) }

// eachPath runs a test on every path.
func eachPath(t *testing.T, paths map[string]*path, test func(*testing.T, *path)) {
	t.Helper()
	for _, spec := range pathSpecs {
		t.Run(spec.name, func(t *testing.T) { test(t, paths[spec.name]) })
	}
}

// scripts are all there are: an actor knows them by name.
func scripts() []script {
	var all []script
	for _, some := range [][]script{closeScripts(), byteScripts(), refuseScripts(), stallScripts(), wireScripts(), manyScripts()} {
		all = append(all, some...)
	}
	return all
}

// both plays a part from either side: once the client acts and the server suffers it, once the other way round.
func both(name string, active, passive func(*actor), sees string) []script {
	return []script{
		{name: name + "/by client", client: active, server: passive, wants: sights{server: sees}},
		{name: name + "/by server", client: passive, server: active, wants: sights{client: sees}},
	}
}

func TestFidelity(t *testing.T) {
	b := newBed(t)
	paths := b.paths(nil)
	silence := b.beginSilence(t) // lasts while the others talk
	eachPath(t, paths, func(t *testing.T, p *path) {
		p.play(t, carried, map[string]func(){carried: func() { b.wantCarried(t, p, p.transports) }})
	})
	for _, topic := range []struct {
		name string
		test func(*testing.T, *bed, map[string]*path)
	}{
		{"ends", func(t *testing.T, b *bed, paths map[string]*path) { table(t, b, paths, closeScripts()) }},
		{"bytes", func(t *testing.T, b *bed, paths map[string]*path) { table(t, b, paths, byteScripts()) }},
		{"refusals", testRefusals},
		{"slow readers", testSlowReaders},
		{"losses", testLosses},
		{"MTU", testMTU},
		{"options", testOptions},
		{"at once", testManyAtOnce},
		{"endings", testNothingLingers},
		{"short", testShort},
	} {
		t.Run(topic.name, func(t *testing.T) { topic.test(t, b, paths) })
	}
	silence(t)
}

// table plays scripts on every path. After each of them nothing is carried any more.
func table(t *testing.T, b *bed, paths map[string]*path, scripts []script) {
	eachPath(t, paths, func(t *testing.T, p *path) {
		for _, s := range scripts {
			t.Run(s.name, func(t *testing.T) {
				p.verify(t, s)
				b.wantCarried(t, p, "")
			})
		}
	})
}

// wantCarried waits until the connections that the path's client opened, and that live, are carried like this.
func (b *bed) wantCarried(t *testing.T, p *path, want string) {
	t.Helper()
	waitFor(t, func() error {
		var all []string
		for _, c := range b.conns.Live() {
			if c.Source.Addr.Addr() == p.client.pod.IPv4 {
				all = append(all, string(c.Direction)+" "+string(c.Transport))
			}
		}
		slices.Sort(all)
		if is := strings.Join(all, ", "); is != want {
			return fmt.Errorf("%s: live connections %q, want %q", p.name, is, want)
		}
		return nil
	})
}

// hurry is less than any timer of the proxies that could bring a stuck connection on again, and much more than a script takes.
const hurry = 8 * time.Second

// verify plays a script and demands its outcome.
func (p *path) verify(t *testing.T, s script) {
	t.Helper()
	start := time.Now()
	defer func() {
		if took := time.Since(start); took > hurry {
			t.Errorf("took %s: something waited for a timer", took)
		}
	}()
	if saw := p.play(t, s.name, nil); saw != s.wants {
		t.Errorf("saw\n\tclient: %s\n\tserver: %s\nwant\n\tclient: %s\n\tserver: %s", saw.client, saw.server, s.wants.client, s.wants.server)
	}
}

// named is the script of this name.
func named(name string) script {
	all := scripts()
	i := slices.IndexFunc(all, func(s script) bool { return s.name == name })
	if i < 0 {
		panic("no script " + name)
	}
	return all[i]
}
