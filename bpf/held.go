package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// A HeldSYN is a SYN that hold keeps.
type HeldSYN struct {
	// Slot is the pod's, as its program was loaded with.
	Slot uint32
	// Headers are those of IP and TCP, without checksums. They are the receiver's.
	Headers []byte
}

// Held reads the SYNs that hold keeps, of all pods of the node.
type Held struct {
	reader *ringbuf.Reader
	file   *os.File // the buffer, for the runtime's poller: the reader's own would block a thread, and with it a processor
}

// ReadHeld begins to read; Run is to be called once. There is to be one reader at a time; what comes without one is dropped once the buffer is full.
func (n *Node) ReadHeld() (_ *Held, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read held connections: %w", err)
		}
	}()
	file, err := pollable(n.maps[connectMapMeshHeld])
	if err != nil {
		return nil, err
	}
	reader, err := ringbuf.NewReader(n.maps[connectMapMeshHeld])
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Held{reader, file}, nil
}

func pollable(m *ebpf.Map) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), connectMapMeshHeld), nil
}

// Run calls take with every SYN, from this goroutine, until Close.
func (h *Held) Run(take func(HeldSYN)) error {
	defer h.reader.Close()
	raw, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("read held connections: %w", err)
	}
	var failed error
	err = raw.Read(func(uintptr) (done bool) {
		for h.reader.AvailableBytes() > 0 && failed == nil {
			failed = h.next(take)
		}
		return failed != nil // else wait for more
	})
	if err = errors.Join(failed, err); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("read held connections: %w", err)
	}
	return nil
}

func (h *Held) next(take func(HeldSYN)) error {
	record, err := h.reader.Read()
	if err != nil {
		return err
	}
	const headerSize = int(unsafe.Offsetof(holdHeld{}.Syn))
	if len(record.RawSample) < headerSize {
		return fmt.Errorf("record of %d bytes", len(record.RawSample))
	}
	slot := binary.NativeEndian.Uint32(record.RawSample)
	size := binary.NativeEndian.Uint32(record.RawSample[4:])
	headers := record.RawSample[headerSize:]
	take(HeldSYN{Slot: slot, Headers: headers[:min(int(size), len(headers))]})
	return nil
}

// Close ends Run.
func (h *Held) Close() error { return h.file.Close() }
