package deploy

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

func objects(t *testing.T, values Values, wanted ...Part) map[string]*unstructured.Unstructured {
	t.Helper()
	manifests, err := Render(values, wanted...)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*unstructured.Unstructured{}
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatalf("the rendered manifests are no YAML: %v\n%s", err, manifests)
		}
		if len(object.Object) == 0 {
			continue
		}
		found[object.GetKind()+"/"+object.GetName()] = object
	}
}

func TestEveryPartRendersItsObjects(t *testing.T) {
	found := objects(t, Defaults(), Foundation, Controller, Ztunnel, CleanNode)
	for _, want := range []string{
		"Namespace/ambit-system",
		"CustomResourceDefinition/workloads.ambit.mesh",
		"CustomResourceDefinition/authorizationpolicies.ambit.mesh",
		"CustomResourceDefinition/egresspolicies.ambit.mesh",
		"CustomResourceDefinition/peerauthentications.ambit.mesh",
		"CustomResourceDefinition/requestauthentications.ambit.mesh",
		"Deployment/controller", "PodDisruptionBudget/controller", "Service/controller", "ServiceAccount/controller",
		"DaemonSet/ztunnel", "ServiceAccount/ztunnel",
		"DaemonSet/clean-node",
	} {
		if found[want] == nil {
			t.Errorf("no %s in the rendered manifests", want)
		}
	}
}

func TestValuesReachTheManifests(t *testing.T) {
	values := Defaults()
	values.Repository, values.Tag = "registry.example:5000/mesh", "v1"
	values.CNIBinDir = `/var/lib/"odd" folder`
	daemonSet := objects(t, values, Ztunnel)["DaemonSet/ztunnel"]
	containers, _, err := unstructured.NestedSlice(daemonSet.Object, "spec", "template", "spec", "containers")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := containers[0].(map[string]any)["image"], "registry.example:5000/mesh/ztunnel:v1"; got != want {
		t.Errorf("image %v, want %v", got, want)
	}
	volumes, _, err := unstructured.NestedSlice(daemonSet.Object, "spec", "template", "spec", "volumes")
	if err != nil {
		t.Fatal(err)
	}
	for _, volume := range volumes {
		if v := volume.(map[string]any); v["name"] == "cni-bin" {
			if got := v["hostPath"].(map[string]any)["path"]; got != values.CNIBinDir {
				t.Errorf("CNI folder %v, want %v", got, values.CNIBinDir)
			}
		}
	}
}
