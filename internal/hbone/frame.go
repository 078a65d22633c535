package hbone

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// header is the head of a frame (RFC 9113 section 4.1).
type header struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
}

// parseHeader reads the nine bytes of b. The reserved bit is ignored.
func parseHeader(b []byte) header {
	_ = b[frameHeader-1]
	return header{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   http2.FrameType(b[3]),
		flags:  http2.Flags(b[4]),
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// put writes the header into the first nine bytes of b.
func (h header) put(b []byte) {
	_ = b[frameHeader-1]
	b[0], b[1], b[2] = byte(h.length>>16), byte(h.length>>8), byte(h.length)
	b[3], b[4] = byte(h.kind), byte(h.flags)
	binary.BigEndian.PutUint32(b[5:], h.stream)
}

func (h header) append(b []byte) []byte {
	var head [frameHeader]byte
	h.put(head[:])
	return append(b, head[:]...)
}

func appendSettings(b []byte, settings []http2.Setting) []byte {
	b = header{length: 6 * len(settings), kind: http2.FrameSettings}.append(b)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendSettingsAck(b []byte) []byte {
	return header{kind: http2.FrameSettings, flags: http2.FlagSettingsAck}.append(b)
}

func appendPing(b []byte, ack bool, payload [8]byte) []byte {
	h := header{length: len(payload), kind: http2.FramePing}
	if ack {
		h.flags = http2.FlagPingAck
	}
	return append(h.append(b), payload[:]...)
}

func appendWindowUpdate(b []byte, stream, increment uint32) []byte {
	b = header{length: 4, kind: http2.FrameWindowUpdate, stream: stream}.append(b)
	return binary.BigEndian.AppendUint32(b, increment)
}

func appendReset(b []byte, stream uint32, code http2.ErrCode) []byte {
	b = header{length: 4, kind: http2.FrameRSTStream, stream: stream}.append(b)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, debug string) []byte {
	b = header{length: 8 + len(debug), kind: http2.FrameGoAway}.append(b)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

// connectionError ends the tunnel, with a GOAWAY that says so (RFC 9113
// section 5.4.1).
type connectionError struct {
	Code  http2.ErrCode
	fault Fault
	text  string
}

func (e connectionError) Error() string { return e.text }

func protocolError(format string, args ...any) error {
	return connectionError{http2.ErrCodeProtocol, ProtocolError, fmt.Sprintf(format, args...)}
}

func sizeError(h header) error {
	return connectionError{http2.ErrCodeFrameSize, ProtocolError, fmt.Sprintf("%s frame of %d bytes", h.kind, h.length)}
}

// errZeroIncrement breaks the stream that the frame is on, or, on none, the
// tunnel (RFC 9113 section 6.9).
var errZeroIncrement = errors.New("WINDOW_UPDATE of zero")

// check refuses a header that its kind does not allow, before anything of the
// payload is looked at (RFC 9113 sections 6.1 to 6.10).
func (h header) check() error {
	onStream, length := h.stream != 0, h.length
	var wrongStream, wrongLength bool
	switch h.kind {
	case http2.FrameData, http2.FrameHeaders, http2.FrameContinuation:
		wrongStream = !onStream
	case http2.FramePriority:
		// Its length breaks a stream only, and priorities mean nothing here.
		wrongStream = !onStream
	case http2.FrameRSTStream:
		wrongStream, wrongLength = !onStream, length != 4
	case http2.FrameSettings:
		wrongStream, wrongLength = onStream, length%6 != 0 || h.flags.Has(http2.FlagSettingsAck) && length != 0
	case http2.FramePushPromise:
		return protocolError("peer pushes")
	case http2.FramePing:
		wrongStream, wrongLength = onStream, length != 8
	case http2.FrameGoAway:
		wrongStream, wrongLength = onStream, length < 8
	case http2.FrameWindowUpdate:
		wrongLength = length != 4
	}
	switch {
	case wrongStream:
		return protocolError("%s frame on stream %d", h.kind, h.stream)
	case wrongLength:
		return sizeError(h)
	}
	return nil
}

// parseSettings reads the payload of a SETTINGS frame that check has passed. It
// refuses values that RFC 9113 section 6.5.2 forbids.
func parseSettings(b []byte, each func(http2.Setting) error) error {
	for ; len(b) >= 6; b = b[6:] {
		s := http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(b)), Val: binary.BigEndian.Uint32(b[2:])}
		if err := s.Valid(); err != nil {
			code := http2.ErrCodeProtocol
			if s.ID == http2.SettingInitialWindowSize {
				code = http2.ErrCodeFlowControl
			}
			return connectionError{code, ProtocolError, "invalid setting " + s.String()}
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return nil
}

// parseReset reads the payload of a RST_STREAM frame of four bytes.
func parseReset(b []byte) http2.ErrCode { return http2.ErrCode(binary.BigEndian.Uint32(b)) }

// parseWindowUpdate reads the payload of a WINDOW_UPDATE frame of four bytes.
func parseWindowUpdate(b []byte) (increment uint32, err error) {
	if increment = binary.BigEndian.Uint32(b) & maxWindow; increment == 0 {
		return 0, errZeroIncrement
	}
	return increment, nil
}

// parseGoAway reads the payload of a GOAWAY frame of eight bytes or more.
func parseGoAway(b []byte) (last uint32, code http2.ErrCode) {
	return binary.BigEndian.Uint32(b) & maxStreamID, http2.ErrCode(binary.BigEndian.Uint32(b[4:]))
}

// fragmentOf takes padding and priority off the payload of a HEADERS frame (RFC
// 9113 section 6.2). What it cannot take apart ends the tunnel: its headers
// would go unread, and the dynamic tables differ from then on.
func fragmentOf(h header, b []byte) ([]byte, error) {
	pad := 0
	if h.flags.Has(http2.FlagHeadersPadded) {
		if len(b) == 0 {
			return nil, sizeError(h)
		}
		pad, b = int(b[0]), b[1:]
	}
	if h.flags.Has(http2.FlagHeadersPriority) {
		if len(b) < 5 {
			return nil, sizeError(h)
		}
		if binary.BigEndian.Uint32(b)&maxStreamID == h.stream {
			return nil, protocolError("stream %d depends on itself", h.stream)
		}
		b = b[5:]
	}
	if pad > len(b) {
		return nil, protocolError("more padding than frame")
	}
	return b[:len(b)-pad], nil
}
