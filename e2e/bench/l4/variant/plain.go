package variant

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// direct is no variant at all.
type direct struct{ Site }

func (d direct) Address() netip.AddrPort                { return d.App }
func (d direct) Places() (client, server process.Place) { return d.places() }
func (d direct) Processes() (client, server []int)      { return nil, nil }
func (d direct) Version() string                        { return "" }
func (d direct) Stop() error                            { return nil }

// None is a client that connects to the server.
func None(_ context.Context, site Site) (Path, error) { return direct{site}, nil }

// Environment of the roles of this program.
const (
	listenVariable = "AMBIT_BENCH_LISTEN"
	toVariable     = "AMBIT_BENCH_TO"
	appVariable    = "AMBIT_BENCH_APP"
	pkiVariable    = "AMBIT_BENCH_PKI"
)

// spliceRole is a plain TCP proxy.
const spliceRole = "splice"

// SpliceFiles is what a connection takes: two sockets, and a pipe for each way.
const SpliceFiles = 6

// Splice is two plain proxies: io.Copy between TCP connections is splice(2), so
// the bytes stay in the kernel. Less than that cannot be had with two hops.
func Splice(ctx context.Context, site Site) (Path, error) {
	role := func(listen, to netip.AddrPort) process.Program {
		return process.Self(spliceRole, listenVariable+"="+listen.String(), toVariable+"="+to.String())
	}
	return startPair(ctx, site, role(outbound, site.tunnel()), role(site.tunnel(), site.App), runtime.Version(), nil)
}

// Run is the main of this package's roles; ok is false for another one.
func Run(role string) (ok bool, err error) {
	switch role {
	case spliceRole:
		return true, runSplice()
	case bareClientRole:
		return true, runBareClient()
	case bareServerRole:
		return true, runBareServer()
	}
	return false, nil
}

func runSplice() error {
	to := os.Getenv(toVariable)
	return acceptAll(func(client *net.TCPConn) {
		conn, err := net.Dial("tcp", to)
		if err != nil {
			client.Close()
			return
		}
		splice(client, conn.(*net.TCPConn))
	})
}

// splice copies both ways and passes the end of each half on.
func splice(a, b *net.TCPConn) {
	defer a.Close()
	defer b.Close()
	var back sync.WaitGroup
	back.Go(func() { half(a, b) })
	half(b, a)
	back.Wait()
}

func half(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close() // the other direction must not wait
		from.Close()
		return
	}
	to.CloseWrite()
}

// acceptAll serves the role's listener, each connection in a goroutine.
func acceptAll(serve func(*net.TCPConn)) error {
	listener, err := net.Listen("tcp", os.Getenv(listenVariable))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go serve(conn.(*net.TCPConn))
	}
}
