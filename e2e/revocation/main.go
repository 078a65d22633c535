// Command revocation measures how long a permission outlives its end: from the
// start of `kubectl apply` of a DENY to the last byte of a connection that it
// forbids, and to the first new connection that is refused.
//
//	go run ./e2e/revocation -trials 200 -out docs/faults
//
// A client on one node and a server on another are captured. In each trial the
// client reads a connection on which a line comes every millisecond, and opens
// new ones as fast as it can; the policy is applied; the client says when its
// connection gave the last byte, and when a new one failed first. Then the policy is
// deleted, until both work again.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const namespace = "revocation"

const deny = `apiVersion: ambit.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: revoked}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/` + namespace + `/sa/client]}}]
`

func main() {
	trials := flag.Int("trials", 200, "number of trials")
	out := flag.String("out", ".tmp/faults", "folder of revocation.json")
	version := flag.String("version", "dev", "version of Ambit, for the page")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *trials, *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "revocation:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, trials int, out, version string) (err error) {
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	if _, err := bed.Run(ctx, "ambit", "install"); err != nil {
		return err
	}
	addresses, err := bed.DeployPair(ctx, namespace, "client", "server")
	server := addresses["server"]
	defer func() {
		_, gone := bed.Kubectl(context.WithoutCancel(ctx), "delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
		err = errors.Join(err, gone)
	}()
	if err != nil {
		return err
	}
	var live, fresh []time.Duration
	for i := range trials {
		l, n, err := trial(ctx, bed, server)
		if err != nil {
			return fmt.Errorf("trial %d: %w", i+1, err)
		}
		live, fresh = append(live, l), append(fresh, n)
		if (i+1)%20 == 0 {
			fmt.Printf("%d trials: live %+v, new %+v\n", i+1, summarize(live), summarize(fresh))
		}
	}
	return write(out, results{Live: summarize(live), New: summarize(fresh), CPUs: runtime.NumCPU(), Load: load(), Version: version})
}

// trial is one permission and its end.
func trial(ctx context.Context, bed *testbed.Bed, server string) (live, fresh time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := bed.Command(ctx, "kubectl", "-n", namespace, "exec", "client", "--", "/usr/local/bin/shop", "tool", "until-refused", server+":7004", server+":7001")
	client.Stderr = os.Stderr
	said, err := client.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := client.Start(); err != nil {
		return 0, 0, fmt.Errorf("start the client: %w", err)
	}
	lines := bufio.NewReader(said)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		return 0, 0, errors.Join(fmt.Errorf("the client said %q", line), err, client.Wait())
	}
	began := time.Now()
	if err := bed.Apply(ctx, namespace, []byte(deny)); err != nil {
		return 0, 0, err
	}
	var seen struct {
		LastByte     time.Time `json:"last_byte"`
		FirstRefused time.Time `json:"first_refused"`
	}
	told := json.NewDecoder(lines).Decode(&seen)
	if err := errors.Join(told, client.Wait()); err != nil {
		return 0, 0, fmt.Errorf("the client: %w", err)
	}
	if _, err := bed.Kubectl(ctx, "-n", namespace, "delete", "authorizationpolicies.ambit.mesh", "revoked"); err != nil {
		return 0, 0, err
	}
	err = testbed.Eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		_, err := bed.Tool(ctx, namespace, "client", "dial", server+":7001")
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("after the policy's deletion: %w", err)
	}
	return seen.LastByte.Sub(began), seen.FirstRefused.Sub(began), nil
}

// load is zero where the kernel does not tell it.
func load() (average float64) {
	if content, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(content), &average)
	}
	return average
}

func write(folder string, r results) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make folder of results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "revocation.json"), append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "revocation.md"), r.page(), 0o644); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	fmt.Printf("%s\n", content)
	if r.Live.P99 >= target || r.New.P99 >= target {
		return fmt.Errorf("the p99 is not under %d ms", target)
	}
	return nil
}
