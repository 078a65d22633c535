package statefile

import (
	"bytes"
	"testing"
)

// FuzzDecode: a file is read exactly if it is one that was written.
func FuzzDecode(f *testing.F) {
	kind := Kind{Name: "pods", Version: 1, MaxBytes: 1 << 20}
	f.Add(kind.Encode([]byte(`{"pods":[]}`)))
	f.Add(kind.Encode(nil))
	f.Add(Kind{Name: "pods", Version: 2}.Encode([]byte("x")))
	f.Fuzz(func(t *testing.T, file []byte) {
		content, err := kind.Decode(file)
		if err == nil && !bytes.Equal(kind.Encode(content), file) {
			t.Fatalf("%q is read as %q, which is written otherwise", file, content)
		}
		if got, err := kind.Decode(kind.Encode(file)); err != nil || !bytes.Equal(got, file) {
			t.Fatalf("%q is read back as %q, %v", file, got, err)
		}
	})
}
