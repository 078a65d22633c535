package statefile

import (
	"bytes"
	"testing"
)

// FuzzDecode: what is read is what was written, to the byte, or nothing.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("ambit pods 3 sha256:\n"))
	f.Add(kind.Encode(nil))
	f.Add(kind.Encode([]byte(content)))
	f.Add(append(kind.Encode([]byte(content)), 0))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := kind.Decode(file)
		if err == nil && !bytes.Equal(kind.Encode(got), file) {
			t.Errorf("%q was read as %q", file, got)
		}
	})
}
