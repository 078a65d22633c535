package ca

import "fmt"

// Code names what is wrong with the root. Codes are stable: `ambit check` and
// documentation refer to them.
type Code string

const (
	// RootMalformed: the Secret exists and cannot be read as a root.
	RootMalformed Code = "RootMalformed"
	// RootKeyMismatch: the Secret's key is not the key of its certificate.
	RootKeyMismatch Code = "RootKeyMismatch"
	// RootExpired: the root's validity is over, or has not begun.
	RootExpired Code = "RootExpired"
	// RootLost: the Secret is gone, its root is still trusted by the mesh, and
	// nobody has the key.
	RootLost Code = "RootLost"
	// RootMissing: the Secret is gone, this process still has the root and
	// could not put it back yet.
	RootMissing Code = "RootMissing"
	// RootChanged: the Secret holds another root than the one in use.
	RootChanged Code = "RootChanged"
	// PluginInvalid: the plug-in Secret cannot be used, and is not.
	PluginInvalid Code = "PluginInvalid"
	// PluginMissing: the plug-in Secret is gone; its issuer stays in use.
	PluginMissing Code = "PluginMissing"
	// IssuerInvalid: what is kept of the issuer in use cannot be read.
	IssuerInvalid Code = "IssuerInvalid"
	// RootUnreadable: the API server does not answer, or does not let us read.
	RootUnreadable Code = "RootUnreadable"
)

var rootCodes = []Code{RootMalformed, RootKeyMismatch, RootExpired, RootLost, RootMissing, RootChanged, RootUnreadable}

// issuerCodes are what may be wrong with what signs.
var issuerCodes = []Code{PluginInvalid, PluginMissing, IssuerInvalid, RootUnreadable, RootExpired}

// Problem is something about the root that a person has to look at.
type Problem struct {
	Code Code
	// Object is the Kubernetes object, as kind and namespace/name.
	Object string
	// Field of the object, empty when it is about the whole object.
	Field string
	// Detail says what was found.
	Detail string
	// Fix says what to do.
	Fix string

	cause error
}

func (p *Problem) Error() string {
	where := p.Object
	if p.Field != "" {
		where += " field " + p.Field
	}
	return fmt.Sprintf("%s: %s: %s; %s", p.Code, where, p.Detail, p.Fix)
}

func (p *Problem) Unwrap() error { return p.cause }
