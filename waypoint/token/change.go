package token

import (
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// Forged tells which fields only a waypoint may send: those for claims. Some servers
// take _ in a name for -, so that those are forged as well.
func Forged(all []*Authentication, more []string) func(name string) bool {
	var names []string
	add := func(name string) {
		if name = alike(name); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, a := range all {
		for _, r := range a.rules {
			for _, c := range r.claims {
				add(c.header)
			}
		}
	}
	for _, name := range more {
		add(name)
	}
	return func(name string) bool { return len(names) > 0 && slices.Contains(names, alike(name)) }
}

func alike(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

// Change makes the fields and the query that go on. proof is nil for a request without
// a token. What it is given it does not change.
func Change(r *request.Request, forged func(name string) bool, proof *Proof) (fields []http1.Field, query string) {
	query = r.Query
	take := proof != nil && !proof.forwards()
	fields = make([]http1.Field, 0, len(r.Fields)+4)
	for _, f := range r.Fields {
		if forged(f.Name) {
			continue
		}
		if take {
			switch at := proof.found.place; {
			case at.kind == header && f.Name == at.name:
				continue
			case at.kind == cookie && f.Name == "cookie":
				if f.Value = without(f.Value, ";", func(pair string) bool { name, _ := splitCookie(pair); return name == at.name }); f.Value == "" {
					continue
				}
			}
		}
		fields = append(fields, f)
	}
	if take && proof.found.place.kind == param {
		query = without(strings.TrimPrefix(query, "?"), "&", func(part string) bool {
			name, _ := splitParam(part)
			return name == proof.found.place.name
		})
		if query != "" {
			query = "?" + query
		}
	}
	if proof != nil {
		fields = append(fields, proof.fields()...)
	}
	return fields, query
}

// without takes elements out of a list.
func without(list, separator string, out func(string) bool) string {
	var kept []string
	for element := range strings.SplitSeq(list, separator) {
		if !out(element) {
			kept = append(kept, element)
		}
	}
	return strings.Trim(strings.Join(kept, separator), " \t")
}

// forwards tells whether one of the rules that took the token wants it to go on.
func (p *Proof) forwards() bool {
	return slices.ContainsFunc(p.rules, func(r *Rule) bool { return r.forward })
}

// fields are the claims that applications are told of, each header once.
func (p *Proof) fields() (all []http1.Field) {
	for _, r := range p.rules {
		for _, c := range r.claims {
			value, ok := p.claim(c.claim)
			if ok && !slices.ContainsFunc(all, func(f http1.Field) bool { return f.Name == c.header }) {
				all = append(all, http1.Field{Name: c.header, Value: value})
			}
		}
	}
	return all
}

// maxClaim is how long one may be in a field.
const maxClaim = 4 << 10

// claim as text; not what a field could not have, or could have in two ways.
func (p *Proof) claim(path []string) (string, bool) {
	var value any = p.Claims.All
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return "", false
		}
		if value, ok = object[name]; !ok {
			return "", false
		}
	}
	switch v := value.(type) {
	case string:
		printable := !strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' })
		return v, printable && v != "" && len(v) <= maxClaim && strings.TrimSpace(v) == v
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}
