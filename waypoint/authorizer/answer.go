package authorizer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// Answer of a provider.
type Answer struct {
	Agreed bool
	// Of agreement: what is changed in the request, and in its response.
	Request, Response Changes
	// Of none: what the client is answered.
	Status int
	Fields []http1.Field
	Body   []byte
}

// Changes of fields.
type Changes struct {
	changes []change
	remove  []string
}

type change struct {
	field  http1.Field
	append how
}

type how uint8

const (
	set how = iota
	add
	ifAbsent
	ifPresent
)

// maxFields of an answer.
const maxFields = 128

// Read what a provider said.
func Read(said *auth.CheckResponse) (*Answer, error) {
	if said.GetStatus() == nil {
		return nil, errors.New("it says nothing") // which reads like agreement
	}
	agrees := said.GetStatus().GetCode() == int32(codes.OK)
	switch details := said.GetHttpResponse().(type) {
	case *auth.CheckResponse_DeniedResponse:
		if agrees {
			return nil, errors.New("it agrees and denies")
		}
		return denied(details.DeniedResponse)
	case *auth.CheckResponse_OkResponse:
		if !agrees {
			return denied(nil)
		}
		return agreed(details.OkResponse)
	case nil:
		if agrees {
			return &Answer{Agreed: true}, nil
		}
		return denied(nil)
	}
	return nil, errors.New("it says that it failed")
}

func agreed(in *auth.OkHttpResponse) (*Answer, error) {
	if len(in.GetQueryParametersToSet())+len(in.GetQueryParametersToRemove()) > 0 {
		return nil, errors.New("it changes parameters of the query, which is not served")
	}
	a := &Answer{Agreed: true}
	var err error
	if a.Request.changes, err = changes(in.GetHeaders(), set); err != nil {
		return nil, err
	}
	if a.Response.changes, err = changes(in.GetResponseHeadersToAdd(), add); err != nil {
		return nil, fmt.Errorf("of the response: %w", err)
	}
	for _, name := range in.GetHeadersToRemove() {
		name = strings.ToLower(name)
		if !http1.IsToken(name) || reserved(name) {
			return nil, fmt.Errorf("it removes %q, which is no header that it may", name)
		}
		a.Request.remove = append(a.Request.remove, name)
	}
	return a, nil
}

func denied(in *auth.DeniedHttpResponse) (*Answer, error) {
	a := &Answer{Status: int(in.GetStatus().GetCode()), Body: []byte(in.GetBody())}
	if a.Status == 0 {
		a.Status = 403
	}
	if a.Status < 200 || a.Status > 599 {
		return nil, fmt.Errorf("it answers with %d, which is no answer", a.Status)
	}
	all, err := changes(in.GetHeaders(), set)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		a.Fields = append(a.Fields, c.field)
	}
	return a, nil
}

// changes reads fields. What none says of how it is meant is meant as usual: set for
// requests, as the protocol has it.
func changes(in []*core.HeaderValueOption, usual how) (all []change, err error) {
	if len(in) > maxFields {
		return nil, fmt.Errorf("it has %d headers, want at most %d", len(in), maxFields)
	}
	for _, option := range in {
		f, err := field(option.GetHeader())
		if err != nil {
			return nil, err
		}
		how := usual
		switch {
		case option.GetAppend() != nil && option.GetAppend().GetValue(): // deprecated, and what providers still send
			how = add
		case option.GetAppend() != nil:
			how = set
		case option.GetAppendAction() == core.HeaderValueOption_ADD_IF_ABSENT:
			how = ifAbsent
		case option.GetAppendAction() == core.HeaderValueOption_OVERWRITE_IF_EXISTS:
			how = ifPresent
		case option.GetAppendAction() == core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			how = set
		}
		if f.Value == "" && !option.GetKeepEmptyValue() && how != set {
			continue
		}
		all = append(all, change{f, how})
	}
	return all, nil
}

func field(in *core.HeaderValue) (http1.Field, error) {
	value := in.GetValue()
	if len(in.GetRawValue()) > 0 {
		value = string(in.GetRawValue())
	}
	f, err := http1.ParseField(in.GetKey() + ": " + value)
	switch {
	case err != nil || !http1.IsToken(in.GetKey()):
		return f, fmt.Errorf("it has a header %q that cannot be", in.GetKey())
	case reserved(f.Name):
		return f, fmt.Errorf("it has the header %q, which is about the connection", f.Name)
	}
	return f, nil
}

// reserved fields are the waypoint's own to say.
func reserved(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer", "content-length", "host", "http2-settings", "expect":
		return true
	}
	return false
}

// None tells whether nothing is changed.
func (c *Changes) None() bool { return len(c.changes)+len(c.remove) == 0 }

// Apply makes the fields as they are afterwards.
func (c *Changes) Apply(fields []http1.Field) []http1.Field {
	out := slices.DeleteFunc(slices.Clone(fields), func(f http1.Field) bool { return slices.Contains(c.remove, f.Name) })
	// What several options say of one name is all meant.
	var replaced []string
	for _, change := range c.changes {
		is := func(f http1.Field) bool { return f.Name == change.field.Name }
		there := slices.ContainsFunc(out, is)
		switch {
		case change.append == ifAbsent && there, change.append == ifPresent && !there:
			continue
		case change.append != add && !slices.Contains(replaced, change.field.Name):
			out = slices.DeleteFunc(out, is)
			replaced = append(replaced, change.field.Name)
		}
		out = append(out, change.field)
	}
	return out
}
