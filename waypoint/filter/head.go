package filter

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// modifier of fields.
type modifier struct {
	set, add []http1.Field
	remove   []string
}

func compileModifier(in *mesh.HeaderModifier) (m modifier, err error) {
	if m.set, err = fields("set", in.GetSet()); err != nil {
		return m, err
	}
	if m.add, err = fields("add", in.GetAdd()); err != nil {
		return m, err
	}
	for i, name := range in.GetRemove() {
		if err := checkName(name); err != nil {
			return m, fmt.Errorf("remove[%d]: %w", i, err)
		}
		m.remove = append(m.remove, strings.ToLower(name))
	}
	return m, nil
}

func fields(field string, in []*mesh.HeaderModifier_Header) (out []http1.Field, err error) {
	for i, h := range in {
		if err := checkName(h.GetName()); err != nil {
			return nil, fmt.Errorf("%s[%d].name: %w", field, i, err)
		}
		if err := checkValue(h.GetValue()); err != nil {
			return nil, fmt.Errorf("%s[%d].value: %w", field, i, err)
		}
		out = append(out, http1.Field{Name: strings.ToLower(h.GetName()), Value: strings.Trim(h.GetValue(), " \t")})
	}
	return out, nil
}

// checkName refuses fields about the connection, and those that frame messages.
func checkName(name string) error {
	if !http1.IsToken(name) {
		return fmt.Errorf("%q is no name of a field", name)
	}
	switch strings.ToLower(name) {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer", "content-length", "host", "http2-settings":
		return fmt.Errorf("%q is not a route's to change", name)
	}
	return nil
}

func checkValue(value string) error {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("%q has a control character", value)
		}
	}
	if !utf8.ValidString(value) {
		return fmt.Errorf("%q is not UTF-8", value)
	}
	return nil
}

// apply returns other fields: those that came may be in use elsewhere.
func (m *modifier) apply(in []http1.Field) []http1.Field {
	out := make([]http1.Field, 0, len(in)+len(m.set)+len(m.add))
	for _, f := range in {
		if !slices.ContainsFunc(m.set, func(s http1.Field) bool { return s.Name == f.Name }) {
			out = append(out, f)
		}
	}
	out = append(append(out, m.set...), m.add...)
	if len(m.remove) > 0 {
		out = slices.DeleteFunc(out, func(f http1.Field) bool { return slices.Contains(m.remove, f.Name) })
	}
	return out
}
