package fault

import (
	"encoding/json"
	"strings"
	"testing"
)

// What the promise names, each alone and each with ztunnel killed.
func TestEveryFaultOfThePromiseIsThere(t *testing.T) {
	there := map[string]Fault{}
	for _, f := range All() {
		if _, twice := there[f.Name]; twice {
			t.Errorf("%s is there twice", f.Name)
		}
		there[f.Name] = f
		if f.Inject == nil && len(f.Attack) == 0 {
			t.Errorf("%s does nothing", f.Name)
		}
		if !f.Killed && (f.What == "" || f.How == "") {
			t.Errorf("%s is not explained", f.Name)
		}
	}
	for name := range strings.FieldsSeq(`ztunnel-kill9 ztunnel-oom ztunnel-crashloop daemonset-deleted ztunnel-upgrade node-power-cut
		cni-conf-removed cni-conf-overwritten cni-binary-missing bpffs-unmounted disk-full controller-down apiserver-down cert-expired
		clock-jump pod-rule-deleted pod-mark-reset ip-options fragments raw-socket listener-lost policy-late`) {
		if _, ok := there[name]; !ok {
			t.Errorf("there is no %s", name)
		}
		if f, ok := there[name+KilledSuffix]; !ok || !f.Killed {
			t.Errorf("there is no %s with ztunnel killed", name)
		}
	}
}

func TestTheOverwrittenChainLacksAmbitAlone(t *testing.T) {
	plain, err := withoutAmbit([]byte(`{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"ptp"},{"type":"portmap"},{"type":"ambit-cni","socket":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(plain, &list); err != nil {
		t.Fatal(err)
	}
	if list.Name != "lab" || len(list.Plugins) != 2 || list.Plugins[0].Type != "ptp" || list.Plugins[1].Type != "portmap" {
		t.Errorf("it became %s", plain)
	}
	if _, err := withoutAmbit(plain); err == nil {
		t.Error("a chain without Ambit could be broken")
	}
}
