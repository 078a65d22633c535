package testbed

import (
	"strings"
	"testing"
)

func TestPacketsAreReadFromWhatTcpdumpPrints(t *testing.T) {
	all := packets([]byte("IP 10.244.1.5.40100 > 10.244.2.7.15008: Flags [S], seq 1, length 0\nE..<\n" +
		"IP6 fd00::5.40100 > fd00::7.8080: Flags [P.], seq 1:9, length 8\n`....card-number=4111\nmore\n"))
	if len(all) != 2 {
		t.Fatalf("%d packets, want 2: %+v", len(all), all)
	}
	if !all[0].Opens() || all[0].Port() != "15008" || all[0].Source != "10.244.1.5.40100" {
		t.Errorf("the first is %+v", all[0])
	}
	if all[1].Opens() || all[1].Port() != "8080" || !strings.Contains(all[1].Text, "card-number=4111\nmore") {
		t.Errorf("the second is %+v", all[1])
	}
}
