package check

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhatIsRevokedIsLookedAt(t *testing.T) {
	configMap := func(name string, annotations, data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: name, Annotations: annotations}, Data: data}
	}
	revoked := func(list, status string) *corev1.ConfigMap {
		return configMap("ambit-ca-revoked", nil, map[string]string{"list.json": list, "status.json": status})
	}
	const list = `{"version":3,"entries":[],"issuers":[]}`
	for name, c := range map[string]struct {
		object *corev1.ConfigMap
		want   []string
	}{
		"well":       {revoked(list, `{"version":3}`), nil},
		"unreadable": {revoked(`{`, `{"version":3}`), []string{"error|list.json|backup"}},
		"a problem": {revoked(list, `{"version":3,"problem":{"code":"CRLInvalid","object":"Secret a/b","field":"crl.pem","detail":"expired","fix":"renew it"}}`),
			[]string{"error|Secret a/b field crl.pem|CRLInvalid: expired|renew it"}},
		"a node behind":           {revoked(list, `{"version":3,"waiting":["n1","n2"]}`), []string{"warning|version 3|n1, n2|accepted there"}},
		"never made":              {configMap("ambit-ca-root", nil, nil), []string{"warning|has not made it yet"}},
		"lost":                    {configMap("ambit-ca-root", map[string]string{"ambit.mesh/revoked": "3"}, nil), []string{"error|the list is gone|backup"}},
		"lost, but for a request": {configMap("ambit-ca-revoked", nil, map[string]string{"request.x": "{}"}), []string{"warning|has not made it yet"}},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := askRevoked(t.Context(), clusterOf(c.object))
			wantFindings(t, findings, err, c.want...)
		})
	}
}
