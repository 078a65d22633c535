package workload

import (
	"crypto/sha256"
	"encoding/binary"
)

// digest is a hash of resources that does not depend on their order, so that a
// delta changes it without a look at what stayed: the sum of the resources'
// own hashes, in two lanes that wrap.
type digest [2]uint64

// resourceDigest hashes one resource by what identifies its contents: the
// version that the controller gave it, or its bytes where it gave none.
func resourceDigest(r Resource) digest {
	h := sha256.New()
	for _, part := range []string{r.Body.GetTypeUrl(), r.Name, r.Version} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	if r.Version == "" {
		h.Write(r.Body.GetValue())
	}
	sum := h.Sum(nil)
	return digest{binary.BigEndian.Uint64(sum), binary.BigEndian.Uint64(sum[8:])}
}

func (d *digest) add(o digest) { d[0] += o[0]; d[1] += o[1] }
func (d *digest) sub(o digest) { d[0] -= o[0]; d[1] -= o[1] }

func (d digest) bytes() []byte {
	out := binary.BigEndian.AppendUint64(nil, d[0])
	return binary.BigEndian.AppendUint64(out, d[1])
}
