package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
)

func TestWhatIsAskedForIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		ask   Revocation
		pod   string
		words string // of the error; empty for none
	}{
		"a serial number":          {Revocation{Serial: "0:1F"}, "", "between colons"},
		"one as openssl prints it": {Revocation{Serial: "00:1F:0A"}, "", ""},
		"an identity":              {Revocation{Identity: "spiffe://cluster.local/ns/shop/sa/web"}, "", ""},
		"a pod":                    {Revocation{}, "shop/web", ""},
		"nothing":                  {Revocation{}, "", "exactly one is needed"},
		"two":                      {Revocation{Serial: "1f"}, "shop/web", "exactly one is needed"},
		"an identity as a number":  {Revocation{Serial: "spiffe://cluster.local/ns/shop/sa/web"}, "", "give it with --identity"},
		"no identity":              {Revocation{Identity: "web"}, "", "--identity"},
		"an identity's issuer":     {Revocation{Identity: "spiffe://cluster.local/ns/shop/sa/web", Issuer: "a0"}, "", "--issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.ask.Check(c.pod)
			if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want ...%s...", err, c.words)
			}
		})
	}
	r := Revocation{Serial: "00:1F:0A"}
	if err := r.Check(""); err != nil || r.Serial != "1f0a" {
		t.Errorf("spelled %q, %v", r.Serial, err)
	}
}

// controller answers requests until the test ends.
func controller(t *testing.T, cluster *kube.Cluster, refused string, waiting []string) {
	configMaps := cluster.Typed.CoreV1().ConfigMaps(install.Namespace)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			object, err := configMaps.Get(ctx, revokedConfigMap, metav1.GetOptions{})
			if err != nil {
				continue
			}
			for field := range object.Data {
				name, is := strings.CutPrefix(field, requestPrefix)
				if !is {
					continue
				}
				delete(object.Data, field)
				list, _ := json.Marshal(map[string]any{"version": 2, "outcomes": []any{map[string]any{"request": name, "refused": refused}}})
				status, _ := json.Marshal(map[string]any{"version": 2, "waiting": waiting})
				object.Data[listKey], object.Data[statusKey] = string(list), string(status)
				if _, err := configMaps.Update(ctx, object, metav1.UpdateOptions{}); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

func TestRevoking(t *testing.T) {
	for name, c := range map[string]struct {
		refused string
		waiting []string
		nobody  bool
		words   string // of the error; empty for none
	}{
		"done":                 {},
		"refused":              {refused: "it signs now", words: "the controller refuses: it signs now"},
		"not known to a node":  {waiting: []string{"n1"}, words: "not known yet to n1"},
		"without a controller": {nobody: true, words: "the controller has not answered within"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := &kube.Cluster{Typed: fake.NewClientset()}
			if !c.nobody {
				controller(t, cluster, c.refused, c.waiting)
			}
			var out bytes.Buffer
			err := Revoke(t.Context(), cluster, Revocation{Serial: "1f"}, 2*time.Second, &out)
			if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want ...%s...", err, c.words)
			}
			if said := strings.Contains(out.String(), "revoked: certificate 1f"); said != (c.refused == "" && !c.nobody) {
				t.Errorf("it says %q", out.String())
			}
		})
	}
}
