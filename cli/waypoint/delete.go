package waypoint

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// listed is how many of what is bound a message spells out.
const listed = 20

// Delete removes a waypoint, with what runs for it. One that something is bound to, or
// that labels name, is removed only by force: without it, all of that is refused.
func Delete(ctx context.Context, cluster *kube.Cluster, namespace, name string, force bool, t *term.Terminal) error {
	v, err := find(ctx, cluster, namespace, name)
	if err != nil {
		return err
	}
	losing := v.losing()
	if len(losing) > 0 && !force {
		return errors.New(v.refusal(losing))
	}
	foreground := metav1.DeletePropagationForeground
	err = cluster.Dynamic.Resource(resource).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &foreground})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Gateway %s/%s: %w", namespace, name, err)
	}
	t.Line(term.OK, "Gateway %s/%s deleted, and what runs for it", namespace, name)
	if len(losing) == 0 {
		return nil
	}
	t.Line(term.Warning, "connections to these are refused from now on:")
	for _, what := range losing {
		t.Note("%s", what)
	}
	t.Text("next: ambit waypoint apply -n %s --name %s, or unbind them:", namespace, name)
	for _, command := range v.unbind() {
		t.Note("%s", command)
	}
	return nil
}

// losing are those that are refused without the waypoint.
func (v *View) losing() (all []string) {
	for _, b := range v.Bound {
		if b.State == binding.PortConflict {
			continue // refused because of it
		}
		what := fmt.Sprintf("%s %s/%s", b.Kind, b.Namespace, b.Name)
		if b.State == binding.Direct {
			what += ", which is reached directly then"
		}
		all = append(all, what)
	}
	for _, l := range v.labelled {
		if l.kind == "namespace" {
			all = append(all, "what is yet to come in namespace "+l.name)
		}
	}
	return all
}

// unbind are the commands that take back the labels that name it.
func (v *View) unbind() (commands []string) {
	for _, l := range v.labelled {
		in := ""
		if l.namespace != "" {
			in = "-n " + l.namespace + " "
		}
		commands = append(commands, fmt.Sprintf("kubectl %slabel %s %s %s-", in, l.kind, l.name, binding.Label))
	}
	return commands
}

func (v *View) refusal(losing []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "waypoint %s/%s is in use; without it, connections to these would be refused:\n", v.Namespace, v.Name)
	write := func(lines []string) {
		for i, line := range lines {
			if i == listed {
				fmt.Fprintf(&b, "  and %d more\n", len(lines)-i)
				break
			}
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	write(losing)
	b.WriteString("unbind them first:\n")
	write(v.unbind())
	b.WriteString("or delete it all the same, with --force")
	return b.String()
}
