// Package check looks for what is wrong, says why, and what to do about it.
//
// A check asks the cluster one question and returns findings. Each finding has
// a code that stays the same, names the object and field it is about, and ends
// with the next step. No check changes anything; one that cannot find out says
// so as a failure, never as a pass.
package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
)

// Level of a finding.
type Level string

const (
	Pass    Level = "pass"
	Warning Level = "warning"
	Error   Level = "error"
)

// Finding is one answer of one check.
type Finding struct {
	Code  string `json:"code"`
	Level Level  `json:"level"`
	// Title of the check.
	Title string `json:"title"`
	// Object that it is about, as kind namespace/name; empty for the cluster.
	Object string `json:"object,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Next is what to do.
	Next string `json:"next,omitempty"`
}

// ErrFailed says that at least one finding is an error.
var ErrFailed = errors.New("the check found errors")

// question is one check; ask returns findings without code and title, none if
// all is well.
type question struct {
	code, title string
	ask         func(context.Context, *kube.Cluster) ([]Finding, error)
}

var questions = []question{
	{"AMB001", "the cluster answers, with a version that Ambit supports", askVersion},
	{"AMB002", "every node's kernel can redirect", askKernels},
	{"AMB003", "the controller is available", askController},
	{"AMB004", "ztunnel is ready on every node", askZtunnel},
	{"AMB005", "every node is heard of, and reports no problem", askHeartbeats},
	{"AMB006", "the root of trust is in place", askRoot},
	{"AMB007", "labels have values that Ambit knows", askLabels},
	{"AMB008", "no other mesh captures the same pods", askOtherMeshes},
	{"AMB009", "network policies admit the tunnel's port", askNetworkPolicies},
	{"AMB010", "the bare name workloads is ours", askBareName},
	{"AMB011", "every workload is captured", askWorkloads},
	{"AMB012", "no workload of the mesh ran uncaptured", askUngated},
	{"AMB013", "every policy is in force as it is written", askEnforcement},
	{"AMB014", "what signs certificates is well", askIssuer},
	{"AMB015", "what is revoked is known, and in force everywhere", askRevoked},
	{"AMB016", "the cluster knows Gateways, if labels name waypoints", askGatewayAPI},
	{"AMB017", "every waypoint that labels name is there, and for them", askWaypointLabels},
	{"AMB018", "every waypoint is programmed", askWaypoints},
	{"AMB019", "every route of a Service is carried out", askRoutes},
	{"AMB020", "what is bound to a waypoint is in force, and no port of it contested", askBindings},
	{"AMB021", "the clocks of nodes and controller agree", askClocks},
	{"AMB022", "no connection is older than the capture of its pod", askOlder},
	{"AMB023", "ztunnel runs wherever pods are to be captured", askAlone},
}

// Run asks everything. Without an answer to the first question there is no
// sense in the others.
func Run(ctx context.Context, cluster *kube.Cluster) []Finding {
	var findings []Finding
	for i, q := range questions {
		answers, err := q.ask(ctx, cluster)
		if err != nil {
			answers = []Finding{{Level: Error, Reason: "cannot find out: " + err.Error(), Next: "see that the cluster answers and that you may read what is named"}}
		}
		if len(answers) == 0 {
			answers = []Finding{{Level: Pass}}
		}
		for _, a := range answers {
			a.Code, a.Title = q.code, q.title
			findings = append(findings, a)
		}
		if i == 0 && err != nil {
			return findings
		}
	}
	return findings
}

// Verdict is ErrFailed if any finding is an error.
func Verdict(findings []Finding) error {
	for _, f := range findings {
		if f.Level == Error {
			return ErrFailed
		}
	}
	return nil
}

// PrintJSON prints the findings as one JSON document.
func PrintJSON(out io.Writer, findings []Finding) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		OK       bool      `json:"ok"`
		Findings []Finding `json:"findings"`
	}{Verdict(findings) == nil, findings})
}

var marks = map[Level]term.Mark{Pass: term.OK, Warning: term.Warning, Error: term.Failure}

// Print prints one line a finding, its reason and next step below.
func Print(t *term.Terminal, findings []Finding) {
	counts := map[Level]int{}
	for _, f := range findings {
		counts[f.Level]++
		t.Line(marks[f.Level], "%s %s", f.Code, f.Title)
		if f.Reason == "" {
			continue
		}
		if f.Object != "" {
			t.Note("%s: %s", f.Object, f.Reason)
		} else {
			t.Note("%s", f.Reason)
		}
		if f.Next != "" {
			t.Note("what to do: %s", f.Next)
		}
	}
	t.Text("%s", fmt.Sprintf("%d passed, %d warnings, %d errors", counts[Pass], counts[Warning], counts[Error]))
}
