// Package skew tells what of a message was said by a version that knows more than this one.
//
// Invariant: what is not known is never taken for nothing. A field of ours that
// this version does not know may narrow the others, so that whoever reads a message
// by which something is let through, or led somewhere, refuses it as a whole or reads
// it as what refuses most. What need not be understood travels in a message of its own.
//
// What is refused then is for who reads the message. Messages of the ambient
// workload-discovery protocol itself are not ours: it says of its own what may be ignored.
package skew

import (
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// ErrUnknown says that there is a field that is not known.
var ErrUnknown = errors.New("has a field that is not known, which may narrow it")

// Check returns ErrUnknown if a message, or one within it, has such a field. What is
// packed in an Any is not looked at.
func Check(m proto.Message) error {
	if unknown(m.ProtoReflect()) {
		return ErrUnknown
	}
	return nil
}

func unknown(m protoreflect.Message) (found bool) {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					found = unknown(v.Message())
					return !found
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for list, i := value.List(), 0; i < list.Len() && !found; i++ {
				found = unknown(list.Get(i).Message())
			}
		default:
			found = unknown(value.Message())
		}
		return !found
	})
	return found
}
