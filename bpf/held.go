package bpf

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// A HeldSYN is a SYN that hold keeps.
type HeldSYN struct {
	// Slot is the pod's, as its program was loaded with.
	Slot uint32
	// Headers are those of IP and TCP, without checksums. They are the receiver's.
	Headers []byte
}

// Held reads the SYNs that hold keeps, of all pods of the node.
type Held struct{ reader *ringbuf.Reader }

// ReadHeld begins to read. There is to be one reader at a time; what comes without one is dropped once the buffer is full.
func (n *Node) ReadHeld() (*Held, error) {
	reader, err := ringbuf.NewReader(n.maps[connectMapMeshHeld])
	if err != nil {
		return nil, fmt.Errorf("read held connections: %w", err)
	}
	return &Held{reader}, nil
}

// Next waits for a SYN. After Close its error is os.ErrClosed.
func (h *Held) Next() (HeldSYN, error) {
	record, err := h.reader.Read()
	if err != nil {
		return HeldSYN{}, err
	}
	const headerSize = int(unsafe.Offsetof(holdHeld{}.Syn))
	if len(record.RawSample) < headerSize {
		return HeldSYN{}, fmt.Errorf("read held connection: record of %d bytes", len(record.RawSample))
	}
	slot := binary.NativeEndian.Uint32(record.RawSample)
	size := binary.NativeEndian.Uint32(record.RawSample[4:])
	headers := record.RawSample[headerSize:]
	return HeldSYN{Slot: slot, Headers: headers[:min(int(size), len(headers))]}, nil
}

// Close ends Next.
func (h *Held) Close() error { return h.reader.Close() }
