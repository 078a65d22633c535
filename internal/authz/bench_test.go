package authz_test

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
)

// hundred policies of which the last one decides.
func hundred(tb testing.TB) (global, namespace, attached []*authz.Policy) {
	tb.Helper()
	var all []*authz.Policy
	for i := range 100 {
		action := security.Action_DENY
		if i%2 == 0 {
			action = security.Action_ALLOW
		}
		a := one(action, &security.Match{
			Principals:       []*security.StringMatch{exactly(fmt.Sprintf("cluster.local/ns/shop/sa/client-%d", i))},
			NotSourceIps:     []*security.Address{{Address: []byte{192, 168, 0, 0}, Length: 16}},
			DestinationPorts: []uint32{8080, 9090},
		})
		if i == 98 {
			a.Rules = []*security.Rule{{}}
		}
		a.Name = fmt.Sprintf("p%03d", i)
		p, err := authz.Parse("shop/"+a.Name, a)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, p)
	}
	return all[:20], all[20:60], all[60:]
}

func TestDecisionsAllocateNothing(t *testing.T) {
	global, namespace, attached := hundred(t)
	if n := testing.AllocsPerRun(100, func() {
		if !authz.Decide(web, global, namespace, attached).Allowed {
			t.Error("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations for one decision by 100 policies", n)
	}
}

func BenchmarkDecide100(b *testing.B) {
	global, namespace, attached := hundred(b)
	b.ReportAllocs()
	for b.Loop() {
		authz.Decide(web, global, namespace, attached)
	}
}
