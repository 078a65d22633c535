package simulated

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// initVariable makes this program the first process of a node: its value is
// the folder for the node's procfs.
const initVariable = "SIMULATED_INIT"

// Isolate builds the shipped binaries, and runs the rest of the program in a
// mount namespace, a network namespace and a cgroup of its own. It is to be
// called first by main, or by TestMain: it returns only in the isolated process.
// Where the variable SIMULATED_BINARIES names a folder with ztunnel, controller
// and cni, nothing is built.
func Isolate() {
	if procfs := os.Getenv(initVariable); procfs != "" {
		exit(0, nodeInit(procfs))
	}
	if !topology.Isolated() {
		exit(buildAndRun())
	}
	if err := topology.MountScratch(); err != nil {
		exit(1, err)
	}
}

func buildAndRun() (code int, err error) {
	made, err := build()
	if made != "" {
		defer os.RemoveAll(made)
	}
	if err != nil {
		return 1, err
	}
	return topology.RunIsolated()
}

func exit(code int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "simulated:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// nodeInit is process 1 of a node: it shows the node's processes in a procfs,
// and buries those that nobody waits for. It ends with its standard input, and
// all of the node's processes with it.
func nodeInit(procfs string) error {
	if err := unix.Mount("proc", procfs, "proc", 0, ""); err != nil {
		return fmt.Errorf("mount procfs of node: %w", err)
	}
	fmt.Println("up")
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	for {
		select {
		case <-children:
		case <-ended:
			return nil
		}
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if pid <= 0 {
				break
			}
		}
	}
}
