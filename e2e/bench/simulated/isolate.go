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
func Isolate() { Isolation{}.Enter() }

// Isolation is what a program has besides that.
type Isolation struct {
	// Namespaces of its own, such as CLONE_NEWPID: all processes then end with
	// it, and it sees them in /proc.
	Namespaces uintptr
	// Components are the packages that are built; those of a mesh, if there are none.
	Components []string
	// Around prepares the machine, outside; undo is called when all has ended.
	Around func() (undo func() error, err error)
}

// Enter is Isolate with more.
func (i Isolation) Enter() {
	if procfs := os.Getenv(initVariable); procfs != "" {
		exit(0, nodeInit(procfs))
	}
	if !topology.Isolated() {
		exit(i.buildAndRun())
	}
	if i.Namespaces&unix.CLONE_NEWPID != 0 {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			exit(1, fmt.Errorf("mount /proc: %w", err))
		}
	}
	if err := topology.MountScratch(); err != nil {
		exit(1, err)
	}
}

func (i Isolation) buildAndRun() (code int, err error) {
	components := i.Components
	if len(components) == 0 {
		components = []string{"ztunnel", "controller", "ztunnel/cni"}
	}
	made, err := build(components)
	if made != "" {
		defer os.RemoveAll(made)
	}
	if err != nil {
		return 1, err
	}
	if i.Around != nil {
		undo, failed := i.Around()
		if failed != nil {
			return 1, failed
		}
		defer func() { err = errors.Join(err, undo()) }()
	}
	return topology.RunIsolated(i.Namespaces)
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
