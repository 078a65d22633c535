package deploy

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// podOf is the pod that a Deployment or a DaemonSet makes: both have its template
// in the same place.
func podOf(t *testing.T, values Values, part Part, object string) corev1.PodSpec {
	t.Helper()
	found := objects(t, values, part)[object]
	if found == nil {
		t.Fatalf("no %s", object)
	}
	var workload appsv1.DaemonSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(found.Object, &workload); err != nil {
		t.Fatal(err)
	}
	return workload.Spec.Template.Spec
}

// near root: the list that SECURITY.md gives, and package simulated proves to be
// the shortest.
var ztunnelCapabilities = []corev1.Capability{"DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"}

// writable are the folders of the node that ztunnel may write to.
var writable = []string{"/etc/cni/net.d", "/opt/cni/bin", "/proc/sys/net", "/run/ambit", "/sys/fs/bpf", "/var/lib/ambit"}

// TestNoProcessHasMoreRightsThanItNeeds of the kernel and of the node.
func TestNoProcessHasMoreRightsThanItNeeds(t *testing.T) {
	for _, c := range []struct {
		part   Part
		object string
		// nodeContainers work on the node; all others have no rights at all.
		nodeContainers []string
	}{
		{Controller, "Deployment/controller", nil},
		{Ztunnel, "DaemonSet/ztunnel", []string{"ztunnel"}},
		{CleanNode, "DaemonSet/clean-node", []string{"clean-node"}},
	} {
		t.Run(string(c.part), func(t *testing.T) {
			pod := podOf(t, Defaults(), c.part, c.object)
			if pod.HostNetwork || pod.HostPID || pod.HostIPC {
				t.Errorf("it shares the node's network, processes or IPC: %t, %t, %t", pod.HostNetwork, pod.HostPID, pod.HostIPC)
			}
			if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
				t.Error("a token is mounted that it does not ask for itself")
			}
			for _, container := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
				s := effective(pod, container)
				if s.Privileged != nil && *s.Privileged {
					t.Errorf("%s is privileged", container.Name)
				}
				if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
					t.Errorf("%s may gain privileges", container.Name)
				}
				if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
					t.Errorf("%s may write to its root file system", container.Name)
				}
				if s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
					t.Errorf("%s has no seccomp profile", container.Name)
				}
				if s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
					t.Fatalf("%s keeps capabilities that it does not name", container.Name)
				}
				added := slices.Sorted(slices.Values(s.Capabilities.Add))
				if !slices.Contains(c.nodeContainers, container.Name) {
					if len(added) > 0 || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 {
						t.Errorf("%s works on no node, and is root or has %v", container.Name, added)
					}
					if paths := written(pod, container); len(paths) > 0 {
						t.Errorf("%s works on no node, and writes to %v of it", container.Name, paths)
					}
					continue
				}
				if !slices.Equal(added, ztunnelCapabilities) {
					t.Errorf("%s has %v, needed are %v", container.Name, added, ztunnelCapabilities)
				}
				if paths := written(pod, container); !slices.Equal(paths, writable) {
					t.Errorf("%s may write to %v of the node, needed are %v", container.Name, paths, writable)
				}
			}
		})
	}
}

// effective is a container's security context, with what it has from its pod's.
func effective(pod corev1.PodSpec, c corev1.Container) corev1.SecurityContext {
	s := corev1.SecurityContext{}
	if c.SecurityContext != nil {
		s = *c.SecurityContext
	}
	if p := pod.SecurityContext; p != nil {
		if s.RunAsNonRoot == nil {
			s.RunAsNonRoot = p.RunAsNonRoot
		}
		if s.RunAsUser == nil {
			s.RunAsUser = p.RunAsUser
		}
		if s.SeccompProfile == nil {
			s.SeccompProfile = p.SeccompProfile
		}
	}
	return s
}

// written are the folders of the node that a container can write to, sorted.
func written(pod corev1.PodSpec, c corev1.Container) (paths []string) {
	for _, mount := range c.VolumeMounts {
		for _, volume := range pod.Volumes {
			if volume.Name == mount.Name && volume.HostPath != nil && !mount.ReadOnly {
				paths = append(paths, volume.HostPath.Path)
			}
		}
	}
	slices.Sort(paths)
	return paths
}

// TestNobodyMayDoMoreInKubernetesThanHeNeeds: rules name what they are about, and
// none of them leads to other rights.
func TestNobodyMayDoMoreInKubernetesThanHeNeeds(t *testing.T) {
	reads := []string{"get", "list", "watch"}
	for name, object := range objects(t, Defaults(), Foundation, Controller, Ztunnel, CleanNode) {
		var rules []rbacv1.PolicyRule
		switch object.GetKind() {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &role); err != nil {
				t.Fatal(err)
			}
			rules = role.Rules
		case "Role":
			var role rbacv1.Role
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &role); err != nil {
				t.Fatal(err)
			}
			rules = role.Rules
		case "ServiceAccount":
			if automount, ok := object.Object["automountServiceAccountToken"].(bool); !ok || automount {
				t.Errorf("%s: its token is mounted into whatever pod names it", name)
			}
		}
		for _, rule := range rules {
			for _, words := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
				if slices.Contains(words, "*") {
					t.Errorf("%s: a rule is about everything: %v", name, rule)
				}
			}
			for _, verb := range []string{"escalate", "bind", "impersonate", "deletecollection"} {
				if slices.Contains(rule.Verbs, verb) {
					t.Errorf("%s may %s", name, verb)
				}
			}
			// What names no object is any; to create, no name can be given.
			anyObject := len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"})
			if slices.Contains(rule.Resources, "secrets") && (anyObject || object.GetKind() == "ClusterRole") {
				t.Errorf("%s reaches secrets that it does not name: %v", name, rule)
			}
			if object.GetName() == "ambit-ztunnel" || object.GetName() == "ztunnel" {
				for _, verb := range rule.Verbs {
					if !slices.Contains(reads, verb) {
						t.Errorf("%s: a node may %s %v", name, verb, rule.Resources)
					}
				}
			}
		}
	}
}
