package authority

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	steady = `{"roots":[{"fingerprint":"aaaaaaaaaaaaaaaa0000","subject":"CN=Ambit root","phase":"Signing"}],
"issuer":{"origin":"self-managed","subject":"CN=Ambit intermediate","serial":"1234567890abcdef00","root":"aaaaaaaaaaaaaaaa0000"}}`
	onItsWay = `{"roots":[{"fingerprint":"aa","phase":"Signing"},{"fingerprint":"bb","phase":"Announced","since":"2026-01-02T03:04:05Z"}],
"issuer":{"origin":"self-managed"},"waiting":["n7"]}`
	replacing = `{"roots":[{"fingerprint":"aa","phase":"Retiring"},{"fingerprint":"bb","phase":"Signing"}],"issuer":{"origin":"self-managed"}}`
	plugged   = `{"roots":[{"fingerprint":"aa","phase":"Signing"}],"issuer":{"origin":"plug-in"}}`
	unplugged = `{"roots":[{"fingerprint":"aa","phase":"Signing"}],"issuer":{"origin":"plug-in"},
"problem":{"code":"PluginMissing","object":"Secret ambit-system/ambit-ca-plugin","detail":"it is gone","fix":"put it back"}}`
)

// withStatus is a cluster whose controller has written a status; without, if empty.
func withStatus(status string) *kube.Cluster {
	objects := []runtime.Object{&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: stateSecret}}}
	if status != "" {
		objects = append(objects, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: configMap}, Data: map[string]string{statusKey: status},
		})
	}
	return &kube.Cluster{Typed: fake.NewClientset(objects...)}
}

func TestWhatIsRotated(t *testing.T) {
	for name, c := range map[string]struct {
		status, what string
		refused      string // words of the error; empty if it is asked for
	}{
		"a root":                               {steady, "root", ""},
		"an intermediate":                      {steady, "intermediate", ""},
		"a root, while one waits":              {onItsWay, "root", "[n7]"},
		"an intermediate, while a root waits":  {onItsWay, "intermediate", ""},
		"a root, while the former one retires": {replacing, "root", ""},
		"a root that is plugged in":            {plugged, "root", "ambit-ca-plugin"},
		"an intermediate that is plugged in":   {plugged, "intermediate", "ambit-ca-plugin"},
		"a root, to leave one that is gone":    {unplugged, "root", ""},
		"an intermediate of a plug-in gone":    {unplugged, "intermediate", "ambit-ca-plugin"},
		"nothing is known of the controller":   {"", "root", "ConfigMap ambit-system/ambit-ca-root"},
		"what is known of it cannot be read":   {"{", "root", "status.json"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := withStatus(c.status)
			err := Rotate(t.Context(), cluster, c.what)
			secret, getErr := cluster.Typed.CoreV1().Secrets(install.Namespace).Get(t.Context(), stateSecret, metav1.GetOptions{})
			if getErr != nil {
				t.Fatal(getErr)
			}
			_, asked := secret.Annotations["ambit.mesh/rotate-"+c.what]
			if asked != (c.refused == "") || len(secret.Annotations) > 1 {
				t.Errorf("annotations %v", secret.Annotations)
			}
			if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%v, want ...%s...", err, c.refused)
			}
		})
	}
}

func TestStatusIsShown(t *testing.T) {
	for status, words := range map[string][]string{
		steady:    {"aaaaaaaaaaaaaaaa ", "Signing", "1234567890abcdef ", "self-managed", "CN=Ambit intermediate"},
		onItsWay:  {"Announced", "2026-01-02T03:04:05Z", "waiting for: [n7]"},
		unplugged: {"problem: PluginMissing: Secret ambit-system/ambit-ca-plugin", "what to do: put it back"},
	} {
		var out bytes.Buffer
		if err := Print(t.Context(), withStatus(status), "", &out); err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if !strings.Contains(out.String(), word) {
				t.Errorf("%q is not in:\n%s", word, out.String())
			}
		}
		out.Reset()
		if err := Print(t.Context(), withStatus(status), "json", &out); err != nil || !strings.HasPrefix(out.String(), "{") {
			t.Errorf("as JSON: %v, %q", err, out.String())
		}
	}
	if err := Print(t.Context(), withStatus(steady), "yaml", &bytes.Buffer{}); err == nil {
		t.Error("as YAML: no error")
	}
}
