package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// strictName begins the names of the authorizations that refuse plaintext. No
// object of Kubernetes can have such a name.
const strictName = "mutual_tls_strict"

// peerAuth is a PeerAuthentication that takes part.
type peerAuth struct {
	outcome  *Policy
	level    level
	selector *v1alpha1.WorkloadSelector
	mode     v1alpha1.MutualTLSMode            // UNSET: as the less specific one says
	ports    map[uint32]v1alpha1.MutualTLSMode // UNSET: as the mode
	// lost counts the pods for which an older one decides, by that one's name.
	lost map[string]int
}

// modeSources are the PeerAuthentications, oldest first.
type modeSources struct {
	system      string
	byNamespace map[string][]*peerAuth
}

// peerAuthentications turns modes into authorizations that refuse plaintext,
// and says on each workload what its node has to guard.
func (o *output) peerAuthentications(all []*v1alpha1.PeerAuthentication, t *targets) *modeSources {
	sources := &modeSources{system: t.system, byNamespace: make(map[string][]*peerAuth)}
	sorted := oldestFirst(all)
	for _, object := range sorted {
		a := readPeerAuthentication(object, t)
		sources.byNamespace[object.Namespace] = append(sources.byNamespace[object.Namespace], a)
		o.outcomes = append(o.outcomes, a.outcome)
	}
	if len(all) == 0 {
		return sources
	}
	for _, p := range t.all {
		o.decideMode(p, sources.of(p), t)
	}
	for _, ofNamespace := range sources.byNamespace {
		for _, a := range ofNamespace {
			a.finish()
		}
	}
	return sources
}

func readPeerAuthentication(object *v1alpha1.PeerAuthentication, t *targets) *peerAuth {
	a := &peerAuth{
		outcome: newPolicy(PeerAuthentication, object), selector: object.Spec.Selector,
		level: t.level(object.Namespace, object.Spec.Selector), mode: v1alpha1.MutualTLSUnset,
		ports: make(map[uint32]v1alpha1.MutualTLSMode), lost: make(map[string]int),
	}
	a.outcome.Version = contentHash(object.Spec, a.outcome.DryRun)
	if len(object.Unread) > 0 {
		a.outcome.unread(object.Unread, "all ports are STRICT")
		a.level, a.mode, a.ports = unreadLevel, v1alpha1.MutualTLSStrict, nil
		return a
	}
	if m := object.Spec.MTLS; m != nil {
		a.mode = a.readMode("spec.mtls.mode", m.Mode)
	}
	if len(object.Spec.PortLevelMTLS) > 0 && !selects(object.Spec.Selector) {
		// The ports of one application are not those of the next; but a port
		// that shall be strict is.
		a.outcome.say(Invalid, "spec.portLevelMtls", "needs a selector: only the ports that are STRICT count")
	}
	for _, key := range slices.Sorted(maps.Keys(object.Spec.PortLevelMTLS)) {
		field := "spec.portLevelMtls[" + key + "]"
		port, err := strconv.ParseUint(key, 10, 16)
		if err != nil || port == 0 {
			a.outcome.say(Invalid, field, "is no port, 1 to 65535: all ports are STRICT")
			a.mode, a.ports = v1alpha1.MutualTLSStrict, nil
			break
		}
		mode := a.readMode(field+".mode", object.Spec.PortLevelMTLS[key].Mode)
		if selects(object.Spec.Selector) || mode == v1alpha1.MutualTLSStrict {
			a.ports[uint32(port)] = mode
		}
	}
	return a
}

// readMode takes a mode that means nothing for the strictest.
func (a *peerAuth) readMode(field string, mode v1alpha1.MutualTLSMode) v1alpha1.MutualTLSMode {
	switch mode {
	case "":
		return v1alpha1.MutualTLSUnset
	case v1alpha1.MutualTLSUnset, v1alpha1.MutualTLSStrict, v1alpha1.MutualTLSPermissive, v1alpha1.MutualTLSDisable:
		return mode
	}
	a.outcome.say(Invalid, field, fmt.Sprintf("%q is not known: it is STRICT", mode))
	return v1alpha1.MutualTLSStrict
}

// of returns those that apply to a pod, the most specific first, the oldest
// first among equals.
func (s *modeSources) of(p *pod) (found []*peerAuth) {
	candidates := s.byNamespace[p.Namespace]
	if p.Namespace != s.system {
		candidates = slices.Concat(candidates, s.byNamespace[s.system])
	}
	for _, a := range candidates {
		if !selects(a.selector) || matches(a.selector, p.Labels) {
			found = append(found, a)
		}
	}
	slices.SortStableFunc(found, func(a, b *peerAuth) int { return cmp.Compare(b.level, a.level) })
	return found
}

// decided is what applies to one pod.
type decided struct {
	mode  v1alpha1.MutualTLSMode // never UNSET
	ports map[uint32]v1alpha1.MutualTLSMode
	// by are those that had a say.
	by []*peerAuth
}

// decide lets the most specific one decide, and asks the less specific for what
// it leaves open.
func decide(applying []*peerAuth, lost func(loser, winner *peerAuth)) decided {
	d := decided{mode: v1alpha1.MutualTLSUnset}
	var last *peerAuth
	for _, a := range applying {
		if last != nil && last.level == a.level {
			lost(a, last)
			continue
		}
		if d.mode != v1alpha1.MutualTLSUnset {
			break
		}
		if last == nil {
			d.ports = a.ports
		}
		last = a
		d.by = append(d.by, a)
		d.mode = a.mode
	}
	if d.mode == v1alpha1.MutualTLSUnset {
		d.mode = v1alpha1.MutualTLSPermissive
	}
	return d
}

// refused says which ports refuse plaintext: with except, all but these.
func (d decided) refused() (ports []uint32, except bool) {
	except = d.mode == v1alpha1.MutualTLSStrict
	for _, port := range slices.Sorted(maps.Keys(d.ports)) {
		mode := d.ports[port]
		if mode == v1alpha1.MutualTLSUnset {
			mode = d.mode
		}
		if strict := mode == v1alpha1.MutualTLSStrict; strict != except {
			ports = append(ports, port)
		}
	}
	return ports, except
}

// lifted is what holds for a pod that is to be let go: it takes plaintext.
func (d decided) lifted() decided {
	return decided{mode: v1alpha1.MutualTLSPermissive, by: d.by}
}

// decideMode attaches to a pod's workload what is in force, and what would be if
// the dry runs were.
func (o *output) decideMode(p *pod, applying []*peerAuth, t *targets) {
	if len(applying) == 0 {
		return
	}
	enforced := slices.DeleteFunc(slices.Clone(applying), func(a *peerAuth) bool { return a.outcome.DryRun })
	inForce := decide(enforced, func(loser, winner *peerAuth) { loser.lost[winner.outcome.key()]++ })
	if t.leaves(p) {
		inForce = inForce.lifted()
	}
	name := o.refusal(inForce, false, t)
	a := t.of(p)
	if name != "" {
		a.authorizations = append(a.authorizations, name)
	}
	if len(inForce.by) > 0 {
		a.mutualTLS = wireMode(inForce.mode)
		ports, except := inForce.refused()
		_, awaits := t.awaits(p)
		a.awaited = awaits && (except || len(ports) > 0)
		if !except {
			a.strictPorts = ports
		}
	}
	t.enforceMode(p, inForce, name)

	if len(enforced) == len(applying) {
		return
	}
	wouldBe := decide(applying, func(loser, winner *peerAuth) {
		if loser.outcome.DryRun {
			loser.lost[winner.outcome.key()]++
		}
	})
	if t.leaves(p) {
		wouldBe = wouldBe.lifted()
	}
	wouldBe.by = slices.DeleteFunc(wouldBe.by, func(a *peerAuth) bool { return !a.outcome.DryRun })
	dryName := ""
	if refused, except := wouldBe.refused(); !sameRefusal(refused, except, inForce) {
		if dryName = o.refusal(wouldBe, true, t); dryName != "" {
			a.authorizations = append(a.authorizations, dryName)
		}
	}
	t.enforceMode(p, wouldBe, dryName)
}

func sameRefusal(ports []uint32, except bool, other decided) bool {
	otherPorts, otherExcept := other.refused()
	return except == otherExcept && slices.Equal(ports, otherPorts)
}

// enforceMode notes for those that had a say what a node needs of them.
func (t *targets) enforceMode(p *pod, d decided, name string) {
	for _, a := range d.by {
		t.enforce(a.outcome, p, true)
		if name == "" {
			continue
		}
		if ref := (Ref{Type: resource.Authorization, Name: name}); !slices.Contains(a.outcome.Resources, ref) {
			a.outcome.Resources = append(a.outcome.Resources, ref)
		}
	}
}

// refusal publishes the authorization that refuses plaintext, and returns its
// name; none if nothing is refused. Pods that refuse the same share it.
func (o *output) refusal(d decided, dryRun bool, t *targets) string {
	ports, except := d.refused()
	if !except && len(ports) == 0 {
		return ""
	}
	match := &security.Match{NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}}}
	name := strictName
	switch {
	case !except:
		match.DestinationPorts = ports
		name += "_only" + joinPorts(ports)
	case len(ports) > 0:
		match.NotDestinationPorts = ports
		name += "_except" + joinPorts(ports)
	}
	if dryRun {
		name += "_dry_run"
	}
	key := t.system + "/" + name
	if _, ok := o.resources[resource.Authorization][key]; !ok {
		o.add(key, &security.Authorization{
			Name: name, Namespace: t.system, Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY, DryRun: dryRun,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match}}}}},
		}, resource.Relations{})
	}
	return key
}

func joinPorts(ports []uint32) string {
	var b strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&b, "_%d", port)
	}
	return b.String()
}

func wireMode(mode v1alpha1.MutualTLSMode) mesh.MutualTLS_Mode {
	switch mode {
	case v1alpha1.MutualTLSStrict:
		return mesh.MutualTLS_STRICT
	case v1alpha1.MutualTLSDisable:
		return mesh.MutualTLS_DISABLE
	}
	return mesh.MutualTLS_PERMISSIVE
}

// finish says what an older one took from it.
func (a *peerAuth) finish() {
	slices.SortFunc(a.outcome.Resources, func(x, y Ref) int { return strings.Compare(x.Name, y.Name) })
	for _, winner := range slices.Sorted(maps.Keys(a.lost)) {
		a.outcome.say(Overridden, "", fmt.Sprintf("%s is as specific and older: it decides for %d pods", winner, a.lost[winner]))
	}
}

// mayBeStrict tells whether a pod of a namespace that nobody knows yet may turn
// out to be strict.
func (s *modeSources) mayBeStrict(namespace string) bool {
	var levels []*peerAuth
	candidates := s.byNamespace[namespace]
	if namespace != s.system {
		candidates = slices.Concat(candidates, s.byNamespace[s.system])
	}
	for _, a := range candidates {
		switch {
		case a.outcome.DryRun:
		case !selects(a.selector):
			levels = append(levels, a)
		case a.mode == v1alpha1.MutualTLSStrict:
			return true
		}
	}
	slices.SortStableFunc(levels, func(a, b *peerAuth) int { return cmp.Compare(b.level, a.level) })
	return decide(levels, func(_, _ *peerAuth) {}).mode == v1alpha1.MutualTLSStrict
}

// contentHash is a version of what is not one resource.
func contentHash(content any, dryRun bool) string {
	text, err := json.Marshal([]any{content, dryRun})
	if err != nil { // structs of strings always serialize
		panic(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
