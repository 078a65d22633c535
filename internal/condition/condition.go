// Package condition evaluates conditions about requests that people write in CEL, the
// Common Expression Language.
//
// Compile is the controller's, to say what is wrong with one, and the waypoint's, to
// carry it out: both have the same variables, and nothing else is there to be named.
//
// Invariants: a condition that compiled ends within its cost, whatever the request is;
// what cannot be evaluated is an error, never an answer.
package condition

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/interpreter"
)

const (
	// MaxLength of a condition.
	MaxLength = 2048
	// maxCost bounds an evaluation, in CEL's own unit, which is about one step: some
	// ten milliseconds at most. Ordinary conditions take a hundredth of that.
	maxCost = 10_000
	// maxDepth of parentheses and the like.
	maxDepth = 50
)

// The variables.
const (
	Method          = "request.method"
	Path            = "request.path"
	Query           = "request.query"
	Host            = "request.host"
	Headers         = "request.headers"
	Principal       = "request.auth.principal"
	Audiences       = "request.auth.audiences"
	Presenter       = "request.auth.presenter"
	Claims          = "request.auth.claims"
	SourceIP        = "source.ip"
	SourcePrincipal = "source.principal"
	SourceNamespace = "source.namespace"
	SourceAccount   = "source.serviceAccount"
	DestinationIP   = "destination.ip"
	DestinationPort = "destination.port"
)

var environment = func() *cel.Env {
	env, err := cel.NewCustomEnv(
		cel.StdLib(), cel.EagerlyValidateDeclarations(true), cel.ParserExpressionSizeLimit(MaxLength), cel.ParserRecursionLimit(maxDepth),
		cel.Variable(Method, cel.StringType), cel.Variable(Path, cel.StringType), cel.Variable(Query, cel.StringType), cel.Variable(Host, cel.StringType),
		cel.Variable(Headers, cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable(Principal, cel.StringType), cel.Variable(Audiences, cel.ListType(cel.StringType)), cel.Variable(Presenter, cel.StringType),
		cel.Variable(Claims, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(SourceIP, cel.StringType), cel.Variable(SourcePrincipal, cel.StringType), cel.Variable(SourceNamespace, cel.StringType), cel.Variable(SourceAccount, cel.StringType),
		cel.Variable(DestinationIP, cel.StringType), cel.Variable(DestinationPort, cel.IntType),
	)
	if err != nil {
		panic(err) // of what stands above
	}
	return env
}()

// Condition is one that was compiled. It never changes.
type Condition struct {
	program cel.Program
	// OfEndpoint: it speaks of the destination.
	OfEndpoint bool
}

// Compile reads a condition. Its error says where it is wrong.
func Compile(text string) (*Condition, error) {
	if len(text) > MaxLength {
		return nil, fmt.Errorf("more than %d bytes", MaxLength)
	}
	ast, issues := environment.Compile(text)
	if err := issues.Err(); err != nil {
		// The library draws an arrow below the text: the first line is what matters.
		first, _, _ := strings.Cut(err.Error(), "\n")
		return nil, errors.New(strings.TrimPrefix(first, "ERROR: <input>:"))
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("is %s, want bool", ast.OutputType())
	}
	c := &Condition{}
	for _, reference := range ast.NativeRep().ReferenceMap() {
		c.OfEndpoint = c.OfEndpoint || strings.HasPrefix(reference.Name, "destination.")
	}
	var err error
	c.program, err = environment.Program(ast, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Variables finds the value of one, when it is needed. ok is false if nobody can say.
type Variables func(name string) (value any, ok bool)

// Holds evaluates the condition.
func (c *Condition) Holds(variables Variables) (bool, error) {
	result, _, err := c.program.Eval(activation{variables})
	if err != nil {
		return false, err
	}
	holds, ok := result.Value().(bool)
	if !ok {
		return false, fmt.Errorf("is %T", result.Value())
	}
	return holds, nil
}

type activation struct{ variables Variables }

// ResolveName is interpreter.Activation's.
func (a activation) ResolveName(name string) (any, bool) { return a.variables(name) }

// Parent is interpreter.Activation's.
func (activation) Parent() interpreter.Activation { return nil }
