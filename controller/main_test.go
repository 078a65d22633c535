package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	environment := map[string]string{
		"POD_NAME": "controller-abc", "POD_NAMESPACE": "mesh", "TRUST_DOMAIN": "corp.example",
		"POD_RANGES": "10.99.0.0/16, fd00::/64", "SERVICE_RANGES": "10.96.0.0/12",
	}
	s, err := parseSettings([]string{"--grpc-address", "127.0.0.1:1"}, func(key string) string { return environment[key] })
	if err != nil {
		t.Fatal(err)
	}
	if s.podName != "controller-abc" || s.namespace != "mesh" || s.trustDomain != "corp.example" {
		t.Errorf("from the environment: %+v", s)
	}
	if s.clusterID != "Kubernetes" || s.clusterDomain != "cluster.local" || s.readiness != ":15021" {
		t.Errorf("defaults: %+v", s)
	}
	if s.grpc != "127.0.0.1:1" || !slices.Equal(s.podRanges, []string{"10.99.0.0/16", "fd00::/64"}) || !slices.Equal(s.serviceRanges, []string{"10.96.0.0/12"}) {
		t.Errorf("lists and flags: %+v", s)
	}
}

func TestSettingsRefuseWhatTheyDoNotKnow(t *testing.T) {
	if _, err := parseSettings([]string{"serve"}, func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), `"serve"`) {
		t.Errorf("got %v", err)
	}
}
