package route

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/skew"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
	"github.com/ambit-mesh/ambit/waypoint/session"
)

const (
	// maxRegex is what a regular expression may have: the API's limit for values.
	maxRegex = 4096
	// defaultBackoff is what the field's proxies wait at first.
	defaultBackoff = 25 * time.Millisecond
	// maxRetries of one request: the controller refuses more. The budget bounds those of all.
	maxRetries = 25
)

// Compile reads the routes of a binding. What is wrong with them is in the Router's
// Problems, and answered with 500 where it matters.
func Compile(routes []*mesh.Route) *Router {
	r := &Router{consumers: map[string]ports{}}
	byClient := map[string][]*mesh.Route{}
	for _, in := range routes {
		client := ""
		if in.GetConsumer() {
			client = in.GetNamespace()
		}
		byClient[client] = append(byClient[client], in)
	}
	compiled := map[*mesh.RouteRule]*Rule{}
	for client, list := range byClient {
		if p := r.compilePorts(list, compiled); client == "" {
			r.all = p
		} else {
			r.consumers[client] = p
		}
	}
	return r
}

func (r *Router) compilePorts(routes []*mesh.Route, compiled map[*mesh.RouteRule]*Rule) ports {
	p := ports{}
	for _, in := range routes {
		p[uint16(in.GetPort())] = nil
	}
	for port := range p {
		var here []*mesh.Route
		for _, in := range routes {
			if in.GetPort() == 0 || uint16(in.GetPort()) == port {
				here = append(here, in)
			}
		}
		if t := r.compileTable(here, compiled); t != nil {
			p[port] = t
		} else {
			delete(p, port)
		}
	}
	return p
}

// compileTable takes the routes of the first kind that there are.
func (r *Router) compileTable(routes []*mesh.Route, compiled map[*mesh.RouteRule]*Rule) *table {
	for _, kind := range kinds {
		var entries []*entry
		found := false
		for _, in := range routes {
			if in.GetKind() != kind {
				continue
			}
			found = true
			for i, rule := range in.GetRules() {
				if compiled[rule] == nil {
					compiled[rule] = r.compileRule(in, rule, i)
				}
				entries = append(entries, r.compileMatches(in, rule, i, compiled[rule])...)
			}
		}
		if found {
			return newTable(entries)
		}
	}
	return nil
}

func (r *Router) problem(in *mesh.Route, rule int, err error) string {
	err = fmt.Errorf("route %s/%s: rules[%d].%w", in.GetNamespace(), in.GetName(), rule, err)
	r.Problems = append(r.Problems, err)
	return err.Error()
}

func (r *Router) compileRule(in *mesh.Route, rule *mesh.RouteRule, index int) *Rule {
	out := &Rule{Route: in.GetNamespace() + "/" + in.GetName(), Name: rule.GetName(), Invalid: rule.GetInvalid()}
	fail := func(err error) {
		if problem := r.problem(in, index, err); out.Invalid == "" {
			out.Invalid = problem
		}
	}
	if len(in.ProtoReflect().GetUnknown()) > 0 {
		fail(fmt.Errorf("route: %w", skew.ErrUnknown))
	}
	if err := skew.Check(rule); err != nil {
		fail(fmt.Errorf("rule: %w", err))
	}
	var err error
	if out.Session, err = session.Compile(rule.GetSessionPersistence()); err != nil {
		fail(fmt.Errorf("session_persistence.%w", err))
	}
	if out.Filters, err = filter.Compile(rule.GetFilters()); err != nil {
		fail(err)
	}
	for i, b := range rule.GetBackends() {
		backend := Backend{Service: b.GetService(), Port: uint16(b.GetPort()), Invalid: b.GetInvalid(), weight: uint64(b.GetWeight())}
		if backend.Invalid == "" && (b.GetService() == "" || b.GetPort() == 0 || b.GetPort() > 65535) {
			backend.Invalid = r.problem(in, index, fmt.Errorf("backends[%d]: service %q, port %d", i, b.GetService(), b.GetPort()))
		}
		if backend.Filters, err = filter.Compile(b.GetFilters()); err != nil {
			backend.Invalid = r.problem(in, index, fmt.Errorf("backends[%d].%w", i, err))
		}
		out.weights += backend.weight
		out.Backends = append(out.Backends, backend)
	}
	duration := func(field string, d *durationpb.Duration) time.Duration {
		if d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
			fail(fmt.Errorf("%s: %v", field, d))
		}
		return d.AsDuration()
	}
	out.RequestTimeout = duration("request_timeout", rule.GetRequestTimeout())
	out.BackendTimeout = duration("backend_request_timeout", rule.GetBackendRequestTimeout())
	if retry := rule.GetRetry(); retry != nil {
		out.Retries = int(min(retry.GetAttempts(), maxRetries))
		out.Backoff = duration("retry.backoff", retry.GetBackoff())
		if out.Backoff == 0 {
			out.Backoff = defaultBackoff
		}
		for _, code := range retry.GetCodes() {
			out.RetryOn = append(out.RetryOn, int(code))
		}
	}
	return out
}

// compileMatches makes an entry of each match.
func (r *Router) compileMatches(in *mesh.Route, rule *mesh.RouteRule, index int, to *Rule) (out []*entry) {
	matches := rule.GetMatches()
	if len(matches) == 0 {
		matches = []*mesh.RouteMatch{{}}
	}
	for i, m := range matches {
		e := &entry{rule: to, created: in.GetCreated(), order: [2]int{index, i}}
		if problem := e.read(in.GetKind(), m); problem != nil {
			e.invalid = r.problem(in, index, fmt.Errorf("matches[%d].%w", i, problem))
		}
		out = append(out, e)
	}
	return out
}

// read takes what cannot be read for what matches, and tells of the first of it.
func (e *entry) read(kind mesh.Route_Kind, in *mesh.RouteMatch) (problem error) {
	fail := func(field string, err error) {
		if err != nil && problem == nil {
			problem = fmt.Errorf("%s: %w", field, err)
		}
	}
	fail("match", skew.Check(in))
	if kind == mesh.Route_GRPC {
		fail("grpc", e.readGRPC(in.GetGrpc()))
	} else {
		e.method = in.GetMethod()
		fail("path", e.readPath(in.GetPath()))
	}
	var err error
	e.headers, err = values(in.GetHeaders())
	fail("headers", err)
	for i := range e.headers {
		e.headers[i].name = strings.ToLower(e.headers[i].name)
	}
	e.query, err = values(in.GetQueryParams())
	fail("query_params", err)
	return problem
}

func (e *entry) readPath(in *mesh.PathMatch) (err error) {
	if in != nil && skew.Check(in) != nil {
		e.path = anyPath
		return skew.ErrUnknown
	}
	switch m := in.GetMatch().(type) {
	case *mesh.PathMatch_Exact:
		e.path = exactPath
		e.value, err = request.Path(m.Exact)
	case *mesh.PathMatch_Prefix:
		e.path = prefixPath
		e.value, err = request.Path(m.Prefix)
		if e.value = strings.TrimSuffix(e.value, "/"); e.value == "" {
			e.path = anyPath
		}
	case *mesh.PathMatch_Regex:
		e.path, e.value = regexPath, m.Regex
		e.regex, err = compileRegex(m.Regex)
	default:
		if e.path = anyPath; in != nil {
			return fmt.Errorf("neither exact, prefix nor regex")
		}
	}
	if err != nil && e.path == exactPath {
		e.path, e.value = anyPath, "" // taken for what matches
	}
	return err
}

// readGRPC: a request for a method is one for /SERVICE/METHOD.
func (e *entry) readGRPC(in *mesh.GRPCMethodMatch) (err error) {
	e.grpc, e.lengths = true, [2]int{len(in.GetService()), len(in.GetMethod())}
	service, method := in.GetService(), in.GetMethod()
	switch {
	case in != nil && skew.Check(in) != nil:
		e.path, err = anyPath, skew.ErrUnknown
	case !in.GetRegex() && service != "" && method != "":
		e.path, e.value = exactPath, "/"+service+"/"+method
	case !in.GetRegex() && service != "":
		e.path, e.value = prefixPath, "/"+service
	case service == "" && method == "":
		e.path = anyPath
	default:
		part := func(s string) string {
			if s == "" {
				return "[^/]+"
			}
			if in.GetRegex() {
				return "(?:" + s + ")"
			}
			return regexp.QuoteMeta(s)
		}
		e.path = regexPath
		for _, s := range []string{service, method} {
			if _, err := compileRegex(s); in.GetRegex() && err != nil {
				return err
			}
		}
		e.regex, err = compileRegex("/" + part(service) + "/" + part(method))
	}
	return err
}

func compileRegex(s string) (*regexp.Regexp, error) {
	if len(s) > maxRegex {
		return nil, fmt.Errorf("regex: %d bytes, want at most %d", len(s), maxRegex)
	}
	return regexp.Compile("^(?:" + s + ")$")
}

func values(in []*mesh.ValueMatch) (out []value, problem error) {
	for i, m := range in {
		v := value{name: m.GetName()}
		var err error
		switch how := m.GetMatch().(type) {
		case *mesh.ValueMatch_Exact:
			v.exact = how.Exact
		case *mesh.ValueMatch_Regex:
			v.isRegex = true
			v.regex, err = compileRegex(how.Regex)
		default:
			v.isRegex, err = true, fmt.Errorf("neither exact nor regex")
		}
		if skew.Check(m) != nil {
			v.isRegex, v.regex, err = true, nil, skew.ErrUnknown
		}
		if v.name == "" || !http1.IsToken(v.name) && !printable(v.name) {
			err = fmt.Errorf("name: %q", v.name)
		}
		if err != nil && problem == nil {
			problem = fmt.Errorf("[%d]: %w", i, err)
		}
		out = append(out, v)
	}
	return out, problem
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// newTable sorts entries by precedence, and indexes them by their paths.
func newTable(entries []*entry) *table {
	slices.SortStableFunc(entries, compare)
	t := &table{entries: entries, exact: map[string][]int{}, prefix: map[string][]int{}}
	for i, e := range entries {
		switch e.path {
		case exactPath:
			t.exact[e.value] = append(t.exact[e.value], i)
		case prefixPath, anyPath:
			t.prefix[e.value] = append(t.prefix[e.value], i)
		case regexPath:
			t.regex = append(t.regex, i)
		}
	}
	return t
}

// compare two entries: who is negative goes first.
func compare(a, b *entry) int {
	present := func(s string) int { return min(len(s), 1) }
	return cmp.Or(
		cmp.Compare(b.lengths[0], a.lengths[0]), cmp.Compare(b.lengths[1], a.lengths[1]),
		cmp.Compare(a.path, b.path), cmp.Compare(len(b.value), len(a.value)),
		cmp.Compare(present(b.method), present(a.method)),
		cmp.Compare(len(b.headers), len(a.headers)), cmp.Compare(len(b.query), len(a.query)),
		cmp.Compare(a.created, b.created), strings.Compare(a.rule.Route, b.rule.Route),
		slices.Compare(a.order[:], b.order[:]),
	)
}
