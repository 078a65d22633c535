package feed

import (
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

// copyUnchanged copies from the present file what is in force as it was.
func copyUnchanged(w io.Writer, path, magic string, lacks changes) error {
	var kept []byte
	return readFile(path, magic, func(message []byte) error {
		var err error
		if kept, err = withoutChanged(kept[:0], message, lacks); err != nil {
			return err
		}
		_, err = w.Write(binary.AppendUvarint(nil, uint64(len(kept))))
		if err == nil {
			_, err = w.Write(kept)
		}
		if err != nil {
			return &writeError{err}
		}
		return nil
	})
}

// writeError: the next file cannot be written, whatever the present one is like.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// The numbers of fields that are looked at in an encoded DeltaDiscoveryResponse,
// and in a Resource.
const (
	fieldResources protowire.Number = 2
	fieldTypeURL   protowire.Number = 4
	fieldNonce     protowire.Number = 5
	fieldName      protowire.Number = 3
)

// withoutChanged appends an encoded response without the resources that have
// changed; nothing of one whose resources could not be read. It does without
// decoding: that would be the whole mesh, for any change of it.
func withoutChanged(to, message []byte, lacks changes) ([]byte, error) {
	typeURL, err := field(message, fieldTypeURL)
	nonce, err2 := field(message, fieldNonce)
	if err = errors.Join(err, err2); err != nil || string(nonce) == unreadNonce {
		return to, err
	}
	upserts := lacks.upserts[string(typeURL)]
	return to, eachField(message, func(number protowire.Number, whole, value []byte) error {
		if number == fieldResources {
			name, err := field(value, fieldName)
			if _, changed := upserts[string(name)]; err != nil || changed {
				return err
			}
		}
		to = append(to, whole...)
		return nil
	})
}

// field returns the value of a string or message field of an encoded message.
func field(message []byte, wanted protowire.Number) (found []byte, err error) {
	err = eachField(message, func(number protowire.Number, _, value []byte) error {
		if number == wanted {
			found = value
		}
		return nil
	})
	return found, err
}

// eachField goes through an encoded message: each field whole, and its value
// where that has a length.
func eachField(message []byte, each func(number protowire.Number, whole, value []byte) error) error {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(message[tag:])
		}
		if err := each(number, message[:tag+size], value); err != nil {
			return err
		}
		message = message[tag+size:]
	}
	return nil
}
