package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func from(variables map[string]string) func(string) string {
	return func(name string) string { return variables[name] }
}

func TestSettings(t *testing.T) {
	required := map[string]string{"NODE_NAME": "n1", "POD_NAME": "ztunnel-x", "POD_NAMESPACE": "ambit-system", "POD_IP": "10.0.0.3"}
	s, err := readSettings(from(required))
	if err != nil {
		t.Fatal(err)
	}
	if s.Controller != "controller.ambit-system.svc:15012" || s.TrustDomain != "cluster.local" || s.Grace != 30*time.Second || s.StrictGrace != 30*time.Second || s.KubeletPort != 10250 || s.OnDemand ||
		s.cniSocket() != "/run/ambit/cni.sock" || s.keys() != "/run/ambit/certs" || s.enrolment() != "/var/lib/ambit/enrolment.json" || s.pins() != "/sys/fs/bpf/ambit" ||
		!slices.Equal(s.NeverHeld, []string{"ambit-system", "kube-system"}) {
		t.Errorf("defaults: %+v", s)
	}
	changed := maps.Clone(required)
	maps.Copy(changed, map[string]string{
		"CONTROLLER_ADDRESS": "https://[fd00::5]:1", "EXCLUDED_NAMESPACES": "storage, kube-system,,net", "XDS_ON_DEMAND": "true",
		"TERMINATION_GRACE_PERIOD_SECONDS": "60", "STRICT_GRACE_SECONDS": "0", "KUBELET_PORT": "10350", "STATE_DIR": "/state",
	})
	s, err = readSettings(from(changed))
	if err != nil {
		t.Fatal(err)
	}
	if s.Controller != "[fd00::5]:1" || !s.OnDemand || s.Grace != time.Minute || s.StrictGrace != 0 || s.KubeletPort != 10350 || s.snapshot() != "/state/snapshot.pb" ||
		!slices.Equal(s.NeverHeld, []string{"ambit-system", "kube-system", "storage", "net"}) {
		t.Errorf("changed: %+v", s)
	}
}

func TestSettingsNameAllThatIsWrong(t *testing.T) {
	_, err := readSettings(from(map[string]string{
		"POD_NAMESPACE": "ambit-system", "POD_IP": "localhost", "CONTROLLER_ADDRESS": "controller:15012", "XDS_ON_DEMAND": "perhaps",
		"TERMINATION_GRACE_PERIOD_SECONDS": "-1", "STATE_DIR": "state", "KUBELET_PORT": "0",
	}))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"NODE_NAME", "POD_NAME", "POD_IP", "CONTROLLER_ADDRESS", "XDS_ON_DEMAND", "TERMINATION_GRACE_PERIOD_SECONDS", "STATE_DIR", "KUBELET_PORT"} {
		if !strings.Contains(err.Error(), name+": ") {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
}

func TestUnknownCommand(t *testing.T) {
	if err := command([]string{"clean"}); err == nil || !strings.Contains(err.Error(), "clean-node") {
		t.Errorf("%v", err)
	}
}
