// Command faults puts one fault after the other in force on the cluster of this
// checkout, and writes what it did to applications: `make faults`.
//
//	go run ./e2e/faults -out docs/faults
//	go run ./e2e/faults -faults ztunnel-kill9,raw-socket -modes strict -out .tmp/faults
//
// It ends with an error if a row does not show what it has to (see
// [result.Row.Problems]); the row is written all the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/faults/fault"
	"github.com/ambit-mesh/ambit/e2e/faults/result"
	"github.com/ambit-mesh/ambit/e2e/faults/trial"
	"github.com/ambit-mesh/ambit/e2e/testbed"
)

func main() {
	var (
		only    = flag.String("faults", "", "which, by patterns such as ztunnel-* or *+ztunnel-killed, separated by commas; all if empty")
		modes   = flag.String("modes", strings.Join(trial.Modes, ","), "modes, separated by commas")
		out     = flag.String("out", ".tmp/faults", "folder of the results; rows that are not measured now stay")
		version = flag.String("version", "dev", "version of Ambit, for the table")
		list    = flag.Bool("list", false, "name all faults and do nothing")
	)
	flag.Parse()
	if *list {
		for _, f := range fault.All() {
			fmt.Println(f.Name)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *only, strings.Split(*modes, ","), *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, modes []string, out, version string) (err error) {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	began := time.Now()
	fmt.Println("installing Ambit, and the applications of the trials")
	if _, err := bed.Run(ctx, "ambit", "install"); err != nil {
		return err
	}
	bench, err := trial.New(ctx, bed, modes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bench.Close(context.WithoutCancel(ctx))) }()
	var bad []string
	for _, f := range chosen {
		rows, err := bench.Run(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", f.Name, err))
			fmt.Printf("%-8s %s: %v\n", time.Since(began).Round(time.Second), f.Name, err)
		}
		for _, row := range rows {
			fmt.Printf("%-8s %-42s %-10s attempted %-4d plaintext %-4d control %-4d refused %-4d survived %d/%d strangers %d/%d recovery %d ms\n", time.Since(began).Round(time.Second),
				row.Fault, row.Mode, row.Attempted, row.PlaintextPackets, row.ControlPlaintextPackets, row.Refused, row.Survived, row.Kept, row.StrangersAnswered, row.StrangersAttempted, row.RecoveryMS)
			for _, evidence := range row.Evidence {
				fmt.Println("         ", evidence)
			}
			for _, problem := range row.Problems() {
				bad = append(bad, fmt.Sprintf("%s, %s: %s", row.Fault, row.Mode, problem))
			}
		}
		if err := result.Merge(out, rows, about(version)); err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d things do not hold:\n%s", len(bad), strings.Join(bad, "\n"))
	}
	fmt.Printf("%d faults in %s: docs and figures are in %s\n", len(chosen), time.Since(began).Round(time.Second), out)
	return nil
}

// choose returns the faults that any of the patterns matches.
func choose(patterns string) ([]fault.Fault, error) {
	all := fault.All()
	if patterns == "" {
		return all, nil
	}
	chosen := map[string]bool{}
	for pattern := range strings.SplitSeq(patterns, ",") {
		found := false
		for _, f := range all {
			if ok, err := path.Match(pattern, f.Name); err != nil {
				return nil, fmt.Errorf("pattern %q: %w", pattern, err)
			} else if ok {
				chosen[f.Name], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("no fault is called %q: see -list", pattern)
		}
	}
	return slices.DeleteFunc(all, func(f fault.Fault) bool { return !chosen[f.Name] }), nil
}

// about names the machine by what matters of it.
func about(version string) result.About {
	machine := fmt.Sprintf("%d cores, %s", runtime.NumCPU(), runtime.GOARCH)
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		release := strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)
		machine += ", Linux " + strings.Join(release[:min(2, len(release))], ".")
	}
	a := result.About{Machine: machine, Version: version}
	for _, f := range fault.All() {
		a.Faults = append(a.Faults, result.Fault{Name: f.Name, What: f.What, How: f.How, Open: f.Open})
	}
	return a
}
