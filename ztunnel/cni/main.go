// Command ambit-cni is the last link of a node's CNI chain: the gate that lets a
// pod of the mesh start only once ztunnel has captured it.
//
//	config.go  the chain entry and the pod, from standard input and CNI_ARGS
//	gate.go    excluded namespace -> start; ztunnel's answer; else the enrolment file
//	ask.go     one request to ztunnel over its unix socket
//
// Invariants: what the plugins before it did is passed on untouched; a pod
// that is enrolled, or of which that cannot be told, is held; DEL never fails.
//
// The plugin touches no network itself: redirection is ztunnel's.
package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

func main() {
	p := plugin{stdout: os.Stdout, stderr: os.Stderr}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:   p.add,
		Del:   p.del,
		Check: p.check,
		// A node without ztunnel is still ready: pods outside the mesh start, and
		// ztunnel itself has to.
		Status: func(*skel.CmdArgs) error { return nil },
	}, version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "Ambit's gate in the CNI chain")
}

// plugin is one call by the container runtime.
type plugin struct {
	stdout, stderr io.Writer
}

func (p plugin) add(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	previous, err := conf.previous()
	if err != nil {
		return err
	}
	sandbox, isPod, err := parsePod(args)
	if err != nil {
		return err
	}
	if isPod {
		sandbox.Addresses = previous.addresses()
		log := p.log(conf, sandbox)
		verdict := decide(conf, sandbox)
		log.Debug("gate decided", "open", verdict.open, "by", verdict.by, "reason", verdict.reason)
		if !verdict.open {
			return held(sandbox, verdict)
		}
	}
	_, err = p.stdout.Write(conf.PrevResult)
	return err
}

func (p plugin) check(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	previous, err := conf.previous()
	if err != nil {
		return err
	}
	sandbox, isPod, err := parsePod(args)
	if err != nil || !isPod {
		return err
	}
	sandbox.Addresses = previous.addresses()
	answer, err := ask(conf.Socket, cniproto.PathCheck, sandbox, cniproto.AddTimeout)
	if err != nil || answer.problem == nil {
		return nil // what is pinned holds without ztunnel
	}
	return held(sandbox, verdict{by: byZtunnel, reason: answer.problem.Code + ": " + answer.problem.Message})
}

// del tells ztunnel that the sandbox ends. It always succeeds: a sandbox whose
// removal fails is kept and retried forever.
func (p plugin) del(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return nil
	}
	sandbox, isPod, err := parsePod(args)
	if err != nil || !isPod || args.Netns == "" {
		return nil
	}
	_, err = ask(conf.Socket, cniproto.PathDel, cniproto.DelRequest{
		Namespace: sandbox.Namespace, Name: sandbox.Name, UID: sandbox.UID,
		ContainerID: sandbox.ContainerID, NetNS: sandbox.NetNS,
	}, cniproto.DelTimeout)
	if err != nil {
		p.log(conf, sandbox).Debug("ztunnel not told of a sandbox's end", "error", err)
	}
	return nil
}

func (p plugin) log(conf *config, sandbox cniproto.AddRequest) *slog.Logger {
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: conf.level})).
		With("plugin", cniproto.PluginType, "namespace", sandbox.Namespace, "pod", sandbox.Name)
}
