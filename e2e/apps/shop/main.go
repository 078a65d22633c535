// Command shop is the demonstration application: a small shop of services that
// speak different protocols, and a shopper who uses them all.
//
//	shop web       HTTP :8080; its front page asks catalog and till
//	shop catalog   gRPC :9090
//	shop till      TCP :7000, a protocol in which the server speaks first
//	shop ticker    WebSocket :8090/live
//	shop shopper   holds one long-lived connection to each, opens new ones all
//	               the time, and tells on :8081/stats how they fare
//	shop echo      answers requests and calls with themselves, for tests of routes
//	shop peer      asks and attacks others, as e2e/faults orders
//	shop issuer    the keys of tokens :8080/keys, also by TLS :8443
//	shop judge     external authorization :9000
//	shop tool get|till|wire|flood|...     one-shot clients, for `kubectl exec`
//
// It knows nothing of any mesh. Every service tells its client who the client
// is on the wire (/whoami, or the greeting), serves /healthz for the kubelet on
// its own port where that is HTTP, else on :8080, and goes on serving for
// LINGER (default 5s) after SIGTERM, as endpoints take time to be withdrawn.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// role is one of the shop's services: it serves until the context ends.
type role func(ctx context.Context) error

var roles = map[string]role{
	"web":     serveWeb,
	"catalog": serveCatalog,
	"till":    serveTill,
	"ticker":  serveTicker,
	"shopper": shop,
	"wires":   serveWires,
	"peer":    servePeer,
	"echo":    serveEcho,
	"issuer":  serveIssuer,
	"judge":   serveJudge,
}

// tool is a one-shot client.
type tool func(ctx context.Context, args []string) error

var tools = map[string]tool{
	"get":           get,
	"till":          sayToTill,
	"flood":         flood,
	"wire":          wire,
	"dial":          dial,
	"ask":           ask,
	"sleep":         sleep,
	"until-refused": untilRefused,
	"until-ended":   untilEnded,
	"present":       present,
	"load":          load,
	"hold":          hold,
	"rate":          openAtRate,
	"ask-all":       askAll,
	"requests":      requests,
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	name, args := os.Args[1], os.Args[2:]
	if name == "tool" && len(args) > 0 {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		run, ok := tools[args[0]]
		if !ok {
			usage()
		}
		exit(run(ctx, args[1:]))
	}
	run, ok := roles[name]
	if !ok {
		usage()
	}
	ctx, stop := lingering(linger())
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func usage() {
	var names []string
	for name := range roles {
		names = append(names, name)
	}
	for name := range tools {
		names = append(names, "tool "+name)
	}
	slices.Sort(names)
	fmt.Fprintln(os.Stderr, "usage: shop", strings.Join(names, " | "))
	os.Exit(2)
}

// linger is how long a service goes on after SIGTERM.
func linger() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("LINGER")); err == nil {
		return d
	}
	return 5 * time.Second
}

// lingering returns a context that ends some time after SIGTERM.
func lingering(linger time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		time.Sleep(linger)
		cancel()
	}()
	return ctx, cancel
}

// self names the pod and node that answer, from the downward API.
func self() string {
	return os.Getenv("POD_NAME") + "@" + os.Getenv("NODE_NAME")
}
