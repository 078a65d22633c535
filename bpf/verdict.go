package bpf

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Verdicts returns how often each decision was taken on this node since the counters were created, over all processors,
// by the lower-case name that it has in the C: connect_captured, steer_dropped_no_listener.
func (n *Node) Verdicts() (map[string]uint64, error) {
	counts := make(map[string]uint64, len(n.verdicts))
	for number, name := range n.verdicts {
		var perCPU []uint64
		if err := n.maps[connectMapMeshVerdicts].Lookup(uint32(number), &perCPU); err != nil {
			return nil, fmt.Errorf("count verdict %s: %w", name, err)
		}
		for _, count := range perCPU {
			counts[name] += count
		}
	}
	return counts, nil
}

// verdictNames reads the names of the verdicts from the type that the C was compiled with.
func verdictNames(types *btf.Spec) ([]string, error) {
	var verdict *btf.Enum
	if err := types.TypeByName("verdict", &verdict); err != nil {
		return nil, fmt.Errorf("find the verdicts: %w", err)
	}
	names := make([]string, connectVerdictVERDICT_COUNT)
	for _, value := range verdict.Values {
		if value.Value < uint64(len(names)) {
			names[value.Value] = strings.ToLower(strings.TrimPrefix(value.Name, "VERDICT_"))
		}
	}
	return names, nil
}
