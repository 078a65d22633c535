package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/authz"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// rounds of every property. What is looked for is found within tens of them.
const rounds = 8_000

func describe(c authz.Connection, policies []*security.Authorization) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v", c)
	for _, p := range policies {
		b.WriteString("\n" + prototext.Format(p))
	}
	return b.String()
}

func TestDecisionsAreThoseOfTheReference(t *testing.T) {
	outcomes := map[authz.Reason]int{}
	for seed := range uint64(rounds) {
		r := newRandom(seed)
		policies, c := r.policies(5), r.connection()
		d := authz.Decide(c, compile(policies))
		outcomes[d.Reason]++
		if want := (reference{c}).decide(policies); d.Allowed != want {
			t.Fatalf("seed %d: %s, want allowed=%t\n%s", seed, d.Reason, want, describe(c, policies))
		}
	}
	// Otherwise the rounds show nothing.
	for _, reason := range []authz.Reason{authz.NoPolicy, authz.Allowed, authz.Denied, authz.NotAllowed} {
		if outcomes[reason] < rounds/50 {
			t.Errorf("%s came about %d times in %d rounds", reason, outcomes[reason], rounds)
		}
	}
}

func TestAddingADenyNeverWidens(t *testing.T) {
	narrowed := 0
	for seed := range uint64(rounds) {
		r := newRandom(seed)
		policies, c := r.policies(4), r.connection()
		deny := r.policy("added")
		deny.Action = security.Action_DENY
		before, after := authz.Decide(c, compile(policies)), authz.Decide(c, compile(append(policies, deny)))
		if after.Allowed && !before.Allowed {
			t.Fatalf("seed %d: allowed since a DENY was added\n%s", seed, describe(c, append(policies, deny)))
		}
		if before.Allowed && !after.Allowed {
			narrowed++
		}
	}
	if narrowed == 0 {
		t.Error("no DENY ever denied")
	}
}

// A policy that allows may lose rules, all of them or as a whole, and lets in no
// more by that; unless it was the last one, for then nobody demands anything.
func TestRemovingFromAnAllowNeverWidens(t *testing.T) {
	narrowed := 0
	for seed := range uint64(rounds) {
		r := newRandom(seed)
		policies, c := r.policies(4), r.connection()
		allow := r.policy("less")
		allow.Action, allow.DryRun = security.Action_ALLOW, false
		less := proto.CloneOf(allow)
		if len(less.Rules) > 0 {
			less.Rules = slices.Delete(less.Rules, 0, 1+r.IntN(len(less.Rules)))
		}
		before := authz.Decide(c, compile(append(slices.Clone(policies), allow)))
		check := func(what string, after authz.Decision) {
			if after.Allowed && !before.Allowed {
				t.Fatalf("seed %d: allowed since an ALLOW lost %s\n%s", seed, what, describe(c, append(policies, allow)))
			}
			if before.Allowed && !after.Allowed {
				narrowed++
			}
		}
		check("rules", authz.Decide(c, compile(append(slices.Clone(policies), less))))
		if slices.ContainsFunc(policies, func(p *security.Authorization) bool { return p.Action == security.Action_ALLOW && !p.DryRun }) {
			check("itself", authz.Decide(c, compile(policies)))
		}
	}
	if narrowed == 0 {
		t.Error("no ALLOW ever allowed")
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(rounds / 4) {
		r := newRandom(seed)
		policies, c := compile(r.policies(6)), r.connection()
		want := authz.Decide(c, policies)
		shuffled := slices.Clone(policies)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		cut := r.IntN(len(shuffled) + 1)
		// Split into several lists, and some of them twice.
		got := authz.Decide(c, shuffled[cut:], shuffled[:cut], shuffled[:cut/2])
		if got.Allowed != want.Allowed || got.Reason != want.Reason || got.Policy != want.Policy || !slices.Equal(got.WouldDeny, want.WouldDeny) {
			t.Fatalf("seed %d: %+v, in another order %+v", seed, want, got)
		}
	}
}

// The dry-run policies that are reported are those that would change the decision:
// enforced, they deny, and without any of them reported they do not.
func TestDryRunSaysWhatWouldBe(t *testing.T) {
	reported := 0
	for seed := range uint64(rounds) {
		r := newRandom(seed)
		policies, c := r.policies(5), r.connection()
		d := authz.Decide(c, compile(policies))
		var inForce []*security.Authorization
		for _, p := range policies {
			p = proto.CloneOf(p)
			p.DryRun = false
			inForce = append(inForce, p)
		}
		then := authz.Decide(c, compile(inForce))
		switch {
		case len(d.WouldDeny) > 0 && then.Allowed:
			t.Fatalf("seed %d: reported to deny, and would not\n%s", seed, describe(c, policies))
		case d.Allowed && !then.Allowed && len(d.WouldDeny) == 0:
			t.Fatalf("seed %d: would deny, and is not reported\n%s", seed, describe(c, policies))
		}
		for _, p := range d.WouldDeny {
			reported++
			if !p.DryRun {
				t.Fatalf("seed %d: %s is in force", seed, p.Name)
			}
		}
	}
	if reported == 0 {
		t.Error("nothing was ever reported")
	}
}

// Whatever characters a name has, it is equal to itself and to nothing else.
func TestLiteralsAreLiterals(t *testing.T) {
	const (
		plain = "abcXYZ019"
		meta  = `.*?+^$[](){}|\/-_ *%`
	)
	r := newRandom(1)
	name := func() string {
		b := make([]byte, 1+r.IntN(6))
		for i := range b {
			if all := plain + meta; r.IntN(3) > 0 {
				b[i] = all[r.IntN(len(all))]
			} else {
				b[i] = meta[r.IntN(len(meta))]
			}
		}
		return string(b)
	}
	decide := func(m *security.Match, id spiffe.ID) bool {
		p, err := authz.Parse("n/p", &security.Authorization{
			Name: "p", Namespace: "n", Action: security.Action_ALLOW,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return authz.Decide(authz.Connection{Identity: id}, []*authz.Policy{p}).Allowed
	}
	for range rounds {
		said, is := name(), name()
		if r.IntN(4) == 0 {
			is = said
		} else if r.IntN(4) == 0 {
			is = strings.ToUpper(said)
		}
		id := spiffe.ID{TrustDomain: "td", Namespace: is, ServiceAccount: is}
		for kind, m := range map[string]*security.Match{
			"namespace":       {Namespaces: []*security.StringMatch{exactly(said)}},
			"principal":       {Principals: []*security.StringMatch{exactly("td/ns/" + said + "/sa/" + said)}},
			"service account": {ServiceAccounts: []*security.ServiceAccountMatch{{Namespace: said, ServiceAccount: said}}},
		} {
			if got := decide(m, id); got != (said == is) {
				t.Fatalf("%s %q matches %q: %t", kind, said, is, got)
			}
		}
		for _, c := range []struct {
			match *security.StringMatch
			want  bool
		}{
			{&security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: said}}, strings.HasPrefix(is, said)},
			{&security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: said}}, strings.HasSuffix(is, said)},
		} {
			if got := decide(&security.Match{Namespaces: []*security.StringMatch{c.match}}, id); got != c.want {
				t.Fatalf("%v matches %q: %t", c.match, is, got)
			}
		}
	}
}
