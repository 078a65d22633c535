package simulated

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/ambit-mesh/ambit/deploy"
)

// shipped is what the manifests say of a component's process.
type shipped struct {
	environment  []string // without what depends on the pod
	fields       map[string]string
	arguments    []string
	capabilities []uintptr
	user         uint32
}

// capabilities by their names in manifests: those that ours ask for.
var capabilities = map[corev1.Capability]uintptr{
	"SYS_ADMIN": unix.CAP_SYS_ADMIN, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW,
	"SYS_PTRACE": unix.CAP_SYS_PTRACE, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
}

// readShipped reads the manifests of a component, rendered as for a cluster.
func readShipped(part deploy.Part, name string, values deploy.Values) (shipped, error) {
	rendered, err := deploy.Render(values, part)
	if err != nil {
		return shipped{}, err
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(rendered), len(rendered)); ; {
		var workload appsv1.DaemonSet // a Deployment has its template in the same place
		if err := decoder.Decode(&workload); errors.Is(err, io.EOF) {
			return shipped{}, fmt.Errorf("read manifests: no %s in part %s", name, part)
		} else if err != nil {
			return shipped{}, fmt.Errorf("read manifests of %s: %w", part, err)
		}
		pod := workload.Spec.Template.Spec
		for _, c := range pod.Containers {
			if c.Name == name && workload.Name == name {
				return shippedIn(pod, c)
			}
		}
	}
}

func shippedIn(pod corev1.PodSpec, c corev1.Container) (shipped, error) {
	s := shipped{fields: make(map[string]string), arguments: c.Args}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
			s.environment = append(s.environment, e.Name+"="+e.Value)
		case e.ValueFrom.FieldRef != nil:
			s.fields[e.Name] = e.ValueFrom.FieldRef.FieldPath
		default:
			return s, fmt.Errorf("read manifest of %s: where %s comes from is not understood", c.Name, e.Name)
		}
	}
	for _, name := range c.SecurityContext.Capabilities.Add {
		number, ok := capabilities[name]
		if !ok {
			return s, fmt.Errorf("read manifest of %s: capability %s is not known here", c.Name, name)
		}
		s.capabilities = append(s.capabilities, number)
	}
	if pod.SecurityContext != nil && pod.SecurityContext.RunAsUser != nil {
		s.user = uint32(*pod.SecurityContext.RunAsUser)
	}
	return s, nil
}

// drop takes away one of the capabilities, if a name is given.
func (s *shipped) drop(name corev1.Capability) error {
	if name == "" {
		return nil
	}
	i := slices.Index(s.capabilities, capabilities[name])
	if i < 0 {
		return fmt.Errorf("capability %q is not among those that the manifest gives", name)
	}
	s.capabilities = slices.Delete(s.capabilities, i, i+1)
	return nil
}

// environmentIn returns the environment of the process in a pod.
func (s shipped) environmentIn(pod *RunningPod) ([]string, error) {
	environment := append([]string(nil), s.environment...)
	for name, field := range s.fields {
		value, ok := map[string]string{
			"spec.nodeName": pod.Node.Name, "metadata.name": pod.Name, "metadata.namespace": systemNamespace, "status.podIP": pod.IPv4.String(),
		}[field]
		if !ok {
			return nil, fmt.Errorf("%s: no field %s here", name, field)
		}
		environment = append(environment, name+"="+value)
	}
	return environment, nil
}

// binariesVariable names the folder of binaries that Isolate built.
const binariesVariable = "SIMULATED_BINARIES"

// build makes static binaries as images have them: in the folder of the
// variable, which is made and returned to be removed where there is none yet.
// It is done before isolation, since the compiler may have to fetch modules.
func build(components []string) (made string, err error) {
	if os.Getenv(binariesVariable) != "" {
		return "", nil
	}
	dir, err := os.MkdirTemp("", "simulated-")
	if err != nil {
		return "", err
	}
	const module = "github.com/ambit-mesh/ambit/"
	command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/")
	for _, c := range components {
		command.Args = append(command.Args, module+c)
	}
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build: %w\n%s", err, out)
	}
	return dir, os.Setenv(binariesVariable, dir)
}

// Binary is the path of one that Isolate built.
func Binary(name string) string { return filepath.Join(os.Getenv(binariesVariable), name) }

// findBinaries takes those that were built in place of those that were not given.
func (m *Mesh) findBinaries(context.Context) error {
	for name, path := range map[string]*string{"ztunnel": &m.config.Ztunnel, "controller": &m.config.Controller, "cni": &m.config.CNI} {
		if *path == "" {
			*path = Binary(name)
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	return nil
}
