package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// pattern is a value that a string is compared with.
type pattern struct {
	how   comparison
	value string
	// segments of a template.
	segments []string
}

type comparison uint8

const (
	exact comparison = iota
	prefix
	suffix
	presence
	template
)

const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

func (p *pattern) matches(s string) bool {
	switch p.how {
	case exact:
		return s == p.value
	case prefix:
		return strings.HasPrefix(s, p.value)
	case suffix:
		return strings.HasSuffix(s, p.value)
	case template:
		return strings.HasPrefix(s, "/") && matchSegments(p.segments, strings.Split(s[1:], "/"))
	}
	return s != ""
}

// matchSegments takes the last {**} for as few segments as possible, and then for more:
// what was matched before never has to be matched anew.
func matchSegments(wanted, got []string) bool {
	w, g, star, from := 0, 0, -1, 0
	for g < len(got) {
		switch {
		case w < len(wanted) && wanted[w] == anySegments:
			star, from = w, g
			w++
		case w < len(wanted) && (wanted[w] == oneSegment && got[g] != "" || wanted[w] != oneSegment && wanted[w] == got[g]):
			w, g = w+1, g+1
		case star >= 0:
			from++
			w, g = star+1, from
		default:
			return false
		}
	}
	for w < len(wanted) && wanted[w] == anySegments {
		w++
	}
	return w == len(wanted)
}

var (
	errEmpty   = errors.New("empty")
	errNotUTF8 = errors.New("is not UTF-8")
)

func parsePattern(k kind, in *mesh.StringPattern) (p pattern, err error) {
	switch m := in.GetMatch().(type) {
	case *mesh.StringPattern_Exact:
		p = pattern{how: exact, value: m.Exact}
	case *mesh.StringPattern_Prefix:
		p = pattern{how: prefix, value: m.Prefix}
	case *mesh.StringPattern_Suffix:
		p = pattern{how: suffix, value: m.Suffix}
	case *mesh.StringPattern_Present:
		if !m.Present {
			return p, errors.New("present: false, which means nothing")
		}
		return pattern{how: presence}, unknown(in)
	case *mesh.StringPattern_Template:
		p = pattern{how: template, value: m.Template}
	default:
		return p, errors.New("neither exact, prefix, suffix, present nor template")
	}
	switch {
	case unknown(in) != nil:
		return p, unknown(in)
	case p.value == "":
		return p, errEmpty
	case !utf8.ValidString(p.value):
		return p, errNotUTF8
	case p.how == template && k != paths:
		return p, errors.New("template: is for paths")
	}
	switch k {
	case hosts:
		return p.asHost(), nil
	case paths:
		return p.asPath()
	}
	return p, nil
}

// asHost brings a value into the form in which hosts are compared; one with a port keeps it.
func (p pattern) asHost() pattern {
	p.value = strings.ToLower(p.value)
	switch p.how {
	case suffix:
		p.value = strings.TrimSuffix(p.value, ".")
	case exact:
		r, err := request.Read("GET", p.value, "/", nil)
		if err != nil {
			return p // no host is that
		}
		port := ""
		if i := strings.LastIndexByte(p.value, ':'); i > strings.LastIndexByte(p.value, ']') {
			port = p.value[i:]
		}
		p.value = r.Host + port
	}
	return p
}

// asPath brings a value into the form in which paths are compared: the normal one, and of
// that what it stands for.
func (p pattern) asPath() (pattern, error) {
	switch p.how {
	case exact:
		normal, err := request.Path(p.value)
		p.value = request.Plain(normal)
		return p, err
	case template:
		if p.value[0] != '/' {
			return p, errors.New("template: does not begin with /")
		}
		p.segments = strings.Split(p.value[1:], "/")
		for i, segment := range p.segments {
			if segment == oneSegment || segment == anySegments || segment == "" && i == len(p.segments)-1 {
				continue
			}
			normal, err := request.Path("/" + segment)
			plain := request.Plain(normal)
			if err != nil || segment == "" || strings.ContainsAny(plain, "{}*") {
				return p, fmt.Errorf("template: %q is no segment that a path can have", segment)
			}
			p.segments[i] = plain[1:]
		}
		return p, nil
	case prefix:
		if p.value[0] != '/' {
			return p, fmt.Errorf("prefix: %q: no path begins so", p.value)
		}
	}
	// Parts of paths cannot be brought into their form: they must have it.
	whole := "/" + strings.TrimPrefix(p.value, "/")
	if normal, err := request.Path(whole); err != nil || normal != whole {
		return p, fmt.Errorf("%q is in no path as it is written here, want its normal form", p.value)
	}
	p.value = request.Plain(p.value)
	return p, nil
}
