package token

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/request"
)

// place is where tokens are.
type place struct {
	kind kind
	name string
	// prefix that stands before them, in a header.
	prefix string
}

type kind uint8

const (
	header kind = iota
	param
	cookie
)

var kinds = [...]string{"header", "parameter", "cookie"}

func (p place) String() string { return kinds[p.kind] + " " + p.name }

// usualPlaces of rules that say none: RFC 6750 section 2.
var usualPlaces = []place{{header, "authorization", "Bearer "}, {param, "access_token", ""}}

// ErrAmbiguous: nobody can say which token is the request's.
var ErrAmbiguous = errors.New("bears more than one token, or one beside something else in its place")

// Found is a token, and where it was.
type Found struct {
	text  string
	place place
}

// Find looks in all places where one of the Authentications does; nil if there is none.
func Find(r *request.Request, all []*Authentication) (*Found, error) {
	var places []place
	for _, a := range all {
		for _, rule := range a.rules {
			for _, p := range rule.places {
				if !slices.Contains(places, p) {
					places = append(places, p)
				}
			}
		}
	}
	// The longest prefix first: what begins with it is not what a shorter one means.
	slices.SortStableFunc(places, func(a, b place) int { return len(b.prefix) - len(a.prefix) })
	var found *Found
	var seen []place
	for _, p := range places {
		if slices.ContainsFunc(seen, func(s place) bool { return s.kind == p.kind && s.name == p.name }) {
			continue // had already, behind a longer prefix
		}
		values := p.values(r)
		text, ok := "", false
		for _, value := range values {
			if rest, is := p.after(value); is {
				text, ok = rest, true
			}
		}
		switch {
		case !ok:
			continue
		case len(values) > 1 || found != nil:
			return nil, ErrAmbiguous
		}
		seen = append(seen, p)
		found = &Found{text: text, place: p}
	}
	return found, nil
}

// values of what has the place's name.
func (p place) values(r *request.Request) (all []string) {
	switch p.kind {
	case header:
		r.Values(p.name, func(value string) bool { all = append(all, value); return true })
	case param:
		for part := range params(r.Query) {
			if name, value := splitParam(part); name == p.name {
				all = append(all, value)
			}
		}
	case cookie:
		r.Values("cookie", func(line string) bool {
			for pair := range strings.SplitSeq(line, ";") {
				if name, value := splitCookie(pair); name == p.name {
					all = append(all, value)
				}
			}
			return true
		})
	}
	return all
}

// after takes the prefix off a value. A prefix with a space at its end is the name of a
// scheme, which is in upper or lower case, and may have more than the one space behind
// it: RFC 9110 section 11.1.
func (p place) after(value string) (rest string, ok bool) {
	scheme, isScheme := strings.CutSuffix(p.prefix, " ")
	if !isScheme {
		return strings.CutPrefix(value, p.prefix)
	}
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", false
	}
	rest = value[len(scheme):]
	if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
		return "", false
	}
	return strings.Trim(rest, " \t"), true
}

// params are the parts of a query between ampersands.
func params(query string) func(func(string) bool) {
	return strings.SplitSeq(strings.TrimPrefix(query, "?"), "&")
}

// splitParam decodes a part; what cannot be decoded stays, and is no token.
func splitParam(part string) (name, value string) {
	name, value, _ = strings.Cut(part, "=")
	if decoded, err := url.QueryUnescape(name); err == nil {
		name = decoded
	}
	if decoded, err := url.QueryUnescape(value); err == nil {
		value = decoded
	}
	return name, value
}

// splitCookie reads a pair: RFC 6265 section 5.4. Quotes around a value are no part of it.
func splitCookie(pair string) (name, value string) {
	name, value, _ = strings.Cut(pair, "=")
	name, value = strings.Trim(name, " \t"), strings.Trim(value, " \t")
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return name, value
}
