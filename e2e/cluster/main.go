// Command cluster runs a real Kubernetes of several nodes on one Linux
// machine, without Docker and without a registry.
//
// Every machine of the lab (the control plane cp, the nodes n1 n2 n3) is a
// group of processes in namespaces and cgroups of its own, cabled to one
// switch, itself a network namespace. Steps of `up`, a file each:
//
//	packages.go   containerd, runc, CNI plugins and tools from Debian
//	build.go      Kubernetes, etcd and CoreDNS from Go modules, into a cache
//	pki.go        certificates, once
//	network.go    the switch, and one cable per machine
//	machine.go    power on: cgroups, then the stages below
//	stage.go        _enter (joins cgroup and network) -> _init (PID 1) -> _agent
//	root.go         _init builds the machine's own root file system
//	controlplane.go, node.go   what the agent of each kind supervises
//	forward.go    127.0.0.1 of the host to an address inside the lab
//
// Invariants: nothing is ever sent to a lab address from the host's own
// network namespace; everything that is started lives in the cluster's
// cgroups and everything that is named carries the cluster's name, so that
// `down` finds all of it without any record, also after a crash; a machine's
// disk (its /etc, /var and /opt) outlives a power cut, nothing else does.
//
// Making the images of the product and of the test applications is not its
// job: `load` takes them as tar files.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `Usage: cluster COMMAND

  build                      build Kubernetes, etcd and CoreDNS into the cache
  up                         bring up whatever is not up; idempotent
  down                       remove everything, also after a crash half-way
  status                     machines, nodes and forwarders
  load TAR...                import image tars into every node, now and at later starts
  exec MACHINE CMD...        run a command inside a machine (cp, n1, n2, n3)
  reboot MACHINE             a power cut, then start again; waits until the node is Ready
  power-off MACHINE          a power cut
  power-on MACHINE           start a machine that is off
  forward [--in MACHINE] LOCALPORT ADDR:PORT
                             127.0.0.1:LOCALPORT to an address as MACHINE (default cp) sees it;
                             LOCALPORT 0 chooses one; prints the address
  forward --stop LOCALPORT   end a forwarder

Environment:
  AMBIT_CLUSTER_DIR   state folder (default .cluster at the root of the checkout)
  AMBIT_CLUSTER_NAME  prefix of all names on this machine (default ambit)
  AMBIT_CACHE         cache folder (default ~/.cache/ambit)
`

// errUsage asks main to print how the command is used.
var errUsage = errors.New("wrong arguments")

// commandExit is the status of a command that ran inside a machine: it has
// said itself what there is to say.
type commandExit int

func (e commandExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	err := run(os.Args[1:])
	var exit commandExit
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(int(exit))
	default:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	command, args := args[0], args[1:]
	if stage, ok := stages[command]; ok {
		return stage(args)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := findLayout()
	if err != nil {
		return err
	}
	c := &cluster{layout: l, out: os.Stdout}
	if command == "build" && len(args) == 0 {
		return c.build(ctx)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: namespaces and cgroups need root", command)
	}
	return c.command(ctx, command, args)
}

// cluster is what the commands work on.
type cluster struct {
	layout
	out io.Writer // what the user reads
}

func (c *cluster) command(ctx context.Context, command string, args []string) error {
	switch {
	case command == "up" && len(args) == 0:
		return c.locked(func() error { return c.up(ctx) })
	case command == "down" && len(args) == 0:
		return c.locked(c.down)
	case command == "status" && len(args) == 0:
		return c.status(ctx)
	case command == "load" && len(args) > 0:
		return c.locked(func() error { return c.load(ctx, args) })
	case command == "exec" && len(args) > 1:
		return c.exec(args[0], args[1:])
	case command == "reboot" && len(args) == 1:
		return c.locked(func() error { return c.reboot(ctx, args[0]) })
	case command == "power-off" && len(args) == 1:
		return c.locked(func() error { return c.powerOffCommand(args[0]) })
	case command == "power-on" && len(args) == 1:
		return c.locked(func() error { return c.powerOnCommand(ctx, args[0]) })
	case command == "forward" && len(args) >= 2:
		return c.forward(args)
	}
	return errUsage
}
