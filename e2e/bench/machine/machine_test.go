package machine

import "testing"

func TestCPUName(t *testing.T) {
	if got := cpuName("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"); got != "Some CPU @ 2 GHz" {
		t.Errorf("got %q", got)
	}
	if got := cpuName("processor\t: 0\n"); got != "CPU of unknown name" {
		t.Errorf("got %q", got)
	}
}
