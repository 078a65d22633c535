package workload

import (
	"maps"

	"google.golang.org/protobuf/proto"
)

// named is a resource that is found by its name alone, or a part of it.
type named[V any] struct {
	value  V
	digest digest
}

// applyNamed brings a delta into a map of resources, which it leaves as it is,
// and returns the next one. What is found by a part of its name is named differently
// by a delta that removes the one name, and has the other.
func applyNamed[M proto.Message, V any](e *edit, d Delta, current map[string]named[V], key func(name string) string,
	empty func() M, parse func(name string, message M) (V, error)) (next map[string]named[V], rejected []Rejection) {
	next = maps.Clone(current)
	if next == nil {
		next = map[string]named[V]{}
	}
	for _, name := range d.Removed {
		e.replaced(next[key(name)].digest, digest{})
		e.settle(Resource{Name: name}, d.Type, nil, nil)
		delete(next, key(name))
	}
	for _, r := range d.Upserts {
		message, err := unpack(r.Body, empty())
		var value V
		if err == nil {
			value, err = parse(r.Name, message)
		}
		if rejected = append(rejected, e.settle(r, d.Type, nil, err)...); err != nil {
			continue
		}
		sum := resourceDigest(r)
		e.replaced(next[key(r.Name)].digest, sum)
		next[key(r.Name)] = named[V]{value: value, digest: sum}
	}
	return next, rejected
}

// byName is the key of what is found by all of its name.
func byName(name string) string { return name }
