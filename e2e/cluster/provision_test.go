package main

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestEveryTemplateRenders(t *testing.T) {
	entries, err := templates.ReadDir("templates")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := render(entry.Name(), valuesOf(nodes()[0]))
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(string(text), "<no value>") || strings.Contains(string(text), "{{") {
			t.Errorf("%s is not rendered:\n%s", entry.Name(), text)
		}
	}
}

func TestNodesHaveAllValues(t *testing.T) {
	v := reflect.ValueOf(valuesOf(nodes()[0]))
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is empty", v.Type().Field(i).Name)
		}
	}
}

func TestCNIGivesOutTheNodesOwnRanges(t *testing.T) {
	n3, err := findMachine("n3")
	if err != nil {
		t.Fatal(err)
	}
	text, err := render("cni.conflist", valuesOf(n3))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Plugins []struct {
			Type string
			IPAM struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	ranges := list.Plugins[0].IPAM.Ranges
	if list.Plugins[0].Type != "ptp" || len(ranges) != 2 || ranges[0][0].Subnet != "10.244.3.0/24" || ranges[1][0].Subnet != "fd00:10:244:3::/64" {
		t.Errorf("got %s", text)
	}
}

func TestHostsNamesEveryMachineInBothFamilies(t *testing.T) {
	text, err := render("hosts", valuesOf(machine{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"172.30.0.1 cp\n", "fd00:172:30::1 cp\n", "172.30.0.13 n3\n", "fd00:172:30::13 n3\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("hosts lacks %q", want)
		}
	}
}

func TestUUIDIsARandomOne(t *testing.T) {
	first, second := newUUID(), newUUID()
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(first) || first == second {
		t.Errorf("got %s and %s", first, second)
	}
}
