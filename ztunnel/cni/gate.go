package main

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// authority is who decided.
type authority string

const (
	byExclusion authority = "excluded namespace"
	byZtunnel   authority = "ztunnel"
	byFile      authority = "enrolment file"
)

// verdict is whether a pod may start, who said so, and why not.
type verdict struct {
	open   bool
	by     authority
	reason string
}

// decide opens the gate to a pod that is known to be outside the mesh, or
// captured; in doubt it stays shut.
func decide(conf *config, sandbox cniproto.AddRequest) verdict {
	if slices.Contains(cniproto.NeverHeld, sandbox.Namespace) || slices.Contains(conf.ExcludedNamespaces, sandbox.Namespace) {
		return verdict{open: true, by: byExclusion}
	}
	answer, err := ask(conf.Socket, cniproto.PathAdd, sandbox, cniproto.AddTimeout)
	switch {
	case err != nil:
		return decideByFile(conf.EnrolmentFile, sandbox.Namespace, err)
	case answer.problem != nil:
		return verdict{by: byZtunnel, reason: answer.problem.Code + ": " + answer.problem.Message}
	}
	return verdict{open: true, by: byZtunnel}
}

// decideByFile asks what ztunnel wrote last, since it does not answer itself.
func decideByFile(path, namespace string, silence error) verdict {
	content, err := cniproto.EnrolmentKind.Read(path)
	var enrolment cniproto.Enrolment
	if err == nil {
		err = json.Unmarshal(content, &enrolment)
	}
	if err != nil {
		return shut("EnrolmentUnknown", "ztunnel does not answer (%v), and what it wrote last cannot be read: %v", silence, err)
	}
	open, code, reason := enrolment.Opens(namespace)
	if open {
		return verdict{open: true, by: byFile}
	}
	return shut(code, "ztunnel does not answer (%v), and %s", silence, reason)
}

func shut(code, format string, args ...any) verdict {
	return verdict{by: byFile, reason: code + ": " + fmt.Sprintf(format, args...)}
}

// held is the error by which the container runtime, and in the pod's events its
// owner, learn why the pod waits.
func held(sandbox cniproto.AddRequest, v verdict) *types.Error {
	return types.NewError(types.ErrTryAgainLater,
		fmt.Sprintf("%s: pod %s/%s held by the mesh's gate: %s", cniproto.PluginType, sandbox.Namespace, sandbox.Name, v.reason), "decided by "+string(v.by))
}
