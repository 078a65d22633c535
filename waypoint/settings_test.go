package main

import (
	"strings"
	"testing"
	"time"
)

func env(changes map[string]string) func(string) string {
	all := map[string]string{
		"NODE_NAME": "n1", "POD_NAME": "way-1", "POD_NAMESPACE": "shop", "POD_IP": "10.244.1.9", "GATEWAY_NAME": "way",
		"TERMINATION_GRACE_PERIOD_SECONDS": "60",
	}
	for name, value := range changes {
		all[name] = value
	}
	return func(name string) string { return all[name] }
}

func TestSettings(t *testing.T) {
	s, err := readSettings(env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if s.Controller != "controller.ambit-system.svc:15012" || s.Gateway != "way" || s.Grace != time.Minute {
		t.Errorf("settings are %+v", s)
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	for name, value := range map[string]string{
		"NODE_NAME": "", "POD_NAME": "", "POD_NAMESPACE": "", "GATEWAY_NAME": "", "POD_IP": "pod",
		"CONTROLLER_ADDRESS": "http://controller:15012", "TOKEN_PATH": "token", "ROOT_CERT_PATH": "root",
		"TERMINATION_GRACE_PERIOD_SECONDS": "-1", "MAX_TUNNELS_PER_ADDRESS": "0", "MAX_CONNECTIONS_PER_IDENTITY": "many",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector",
	} {
		if _, err := readSettings(env(map[string]string{name: value})); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%q: %v", name, value, err)
		}
	}
}
