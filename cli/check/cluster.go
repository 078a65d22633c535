package check

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
)

// minMinor is the oldest Kubernetes 1.x whose tokens name the pod and node that
// they were issued to.
const minMinor = 30

func askVersion(_ context.Context, cluster *kube.Cluster) ([]Finding, error) {
	version, err := cluster.Discovery.ServerVersion()
	if err != nil {
		return nil, err
	}
	minor, err := strconv.Atoi(regexp.MustCompile(`^\d+`).FindString(version.Minor))
	if err != nil {
		return nil, fmt.Errorf("parse the server's minor version %q", version.Minor)
	}
	if minor < minMinor {
		return []Finding{{
			Level: Error, Reason: fmt.Sprintf("Kubernetes %s: its tokens do not name the node, so certificates cannot be bound to nodes", version.GitVersion),
			Next: fmt.Sprintf("upgrade to 1.%d or newer", minMinor),
		}}, nil
	}
	return nil, nil
}

// The redirection needs sk_lookup (5.9) and network namespace cookies in
// sockops programs (5.15).
const minKernelMajor, minKernelMinor = 5, 15

func kernelTooOld(release string) (bool, error) {
	m := regexp.MustCompile(`^(\d+)\.(\d+)`).FindStringSubmatch(release)
	if m == nil {
		return false, fmt.Errorf("parse kernel version %q", release)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major < minKernelMajor || major == minKernelMajor && minor < minKernelMinor, nil
}

func askKernels(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	nodes, err := cluster.Typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, node := range nodes.Items {
		old, err := kernelTooOld(node.Status.NodeInfo.KernelVersion)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", node.Name, err)
		}
		if old {
			findings = append(findings, Finding{
				Level: Error, Object: "Node " + node.Name, Reason: "kernel " + node.Status.NodeInfo.KernelVersion + " is too old",
				Next: fmt.Sprintf("upgrade it to %d.%d or newer, or keep enrolled pods off it", minKernelMajor, minKernelMinor),
			})
		}
	}
	return findings, nil
}

const notInstalled = "Ambit is not installed"

const (
	controllerObject = "Deployment ambit-system/controller"
	controllerLogs   = "kubectl -n ambit-system logs --prefix -l app=controller"
	// leaderSilent is twice what a controller that leads may be late to say so.
	leaderSilent = 15 * time.Second
)

// askController: one replica has to lead, since it alone serves; that there is
// another to take over is worth a warning.
func askController(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	findings, err := settled(ctx, controllerObject, cluster.DeploymentAvailable(install.Namespace, "controller"), controllerLogs)
	if err != nil {
		return nil, err
	}
	deployment, err := cluster.Typed.AppsV1().Deployments(install.Namespace).Get(ctx, "controller", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return findings, nil
	}
	if err != nil {
		return nil, err
	}
	if deployment.Status.AvailableReplicas == 0 {
		return findings, nil
	}
	for i := range findings {
		findings[i].Level = Warning
		findings[i].Reason += ": the mesh works, with no other replica to take over"
	}
	silent, err := leaderless(ctx, cluster)
	if err == nil && silent != "" {
		findings = append(findings, Finding{Level: Error, Object: "Lease ambit-system/controller", Reason: silent, Next: controllerLogs})
	}
	return findings, err
}

// leaderless says why no replica can be leading; empty if one is.
func leaderless(ctx context.Context, cluster *kube.Cluster) (string, error) {
	lease, err := cluster.Typed.CoordinationV1().Leases(install.Namespace).Get(ctx, "controller", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "no replica has ever led: nodes get neither configuration nor certificates", nil
	case err != nil:
		return "", err
	case lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "":
		return "no replica leads: nodes get neither configuration nor certificates", nil
	case lease.Spec.RenewTime == nil || time.Since(lease.Spec.RenewTime.Time) > leaderSilent:
		return fmt.Sprintf("%s was the last to lead, and is silent: nodes get neither configuration nor certificates", *lease.Spec.HolderIdentity), nil
	}
	return "", nil
}

func askZtunnel(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	return settled(ctx, "DaemonSet ambit-system/ztunnel", cluster.DaemonSetReady(install.Namespace, "ztunnel"),
		"kubectl -n ambit-system logs daemonset/ztunnel; a ztunnel that is not ready says why on :15021/healthz/ready")
}

// settled turns a progress that is not done into a finding.
func settled(ctx context.Context, object string, ask func(context.Context) (kube.Progress, error), next string) ([]Finding, error) {
	now, err := ask(ctx)
	if apierrors.IsNotFound(err) {
		return []Finding{{Level: Error, Object: object, Reason: notInstalled, Next: "ambit install"}}, nil
	}
	if err != nil {
		return nil, err
	}
	if !now.Done {
		return []Finding{{Level: Error, Object: object, Reason: now.Text, Next: next}}, nil
	}
	return nil, nil
}
