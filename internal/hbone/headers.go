package hbone

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// block is a decoded block of headers.
type block struct {
	streamID uint32
	ended    bool // with END_STREAM

	pseudo map[string]string
	header http.Header
	// malformed is what RFC 9113 section 8.2 and 8.3 forbid; the peer's dynamic
	// table was followed nevertheless.
	malformed error
}

// headerReader decodes blocks of headers. It is owned by the reading goroutine.
type headerReader struct {
	dec     *hpack.Decoder
	maxList int

	block    *block // that was begun and has not ended; nil if none
	fragment []byte
	frames   int // CONTINUATION
}

func newHeaderReader(maxList int) *headerReader {
	// 4096 is the table size before any setting (RFC 9113 section 6.5.2); we
	// announce no other.
	return &headerReader{dec: hpack.NewDecoder(4096, nil), maxList: maxList}
}

// begin starts the block of a HEADERS frame with its fragment.
func (r *headerReader) begin(h header, fragment []byte) {
	r.block = &block{streamID: h.stream, ended: h.flags.Has(http2.FlagHeadersEndStream)}
	r.frames = 0
	r.fragment = append(r.fragment[:0], fragment...)
}

// more adds the fragment of a CONTINUATION frame. Its errors end the connection.
func (r *headerReader) more(fragment []byte) error {
	r.frames++
	if r.frames > maxContinuations || len(r.fragment)+len(fragment) > maxControlFrame {
		return flood(HeaderFlood, "headers in too many frames")
	}
	r.fragment = append(r.fragment, fragment...)
	return nil
}

// end returns the whole block. Its errors end the connection.
func (r *headerReader) end() (*block, error) {
	b := r.block
	r.block = nil
	return b, r.decode(b)
}

var errCompression = connectionError{http2.ErrCodeCompression, ProtocolError, "headers cannot be decoded"}

// decode fills b from the collected fragment. A list beyond the limit makes b
// malformed; one far beyond it is an attack on memory or time and ends the
// connection, before the rest is looked at.
func (r *headerReader) decode(b *block) error {
	b.pseudo, b.header = map[string]string{}, http.Header{}
	size := 0
	r.dec.SetEmitFunc(func(f hpack.HeaderField) {
		if size += int(f.Size()); size > r.maxList {
			b.malformed = fmt.Errorf("headers exceed %d bytes", r.maxList)
		} else if b.malformed == nil {
			b.malformed = b.add(f)
		}
	})
	for rest := r.fragment; len(rest) > 0; {
		const step = 1 << 10
		n := min(step, len(rest))
		if _, err := r.dec.Write(rest[:n]); err != nil {
			return errCompression
		}
		if size > excessHeaderList*r.maxList {
			return flood(HeaderFlood, "headers are far too many")
		}
		rest = rest[n:]
	}
	if cap(r.fragment) > 4<<10 {
		r.fragment = nil // an idle tunnel keeps no big buffer
	}
	if r.dec.Close() != nil {
		return errCompression
	}
	return nil
}

func (b *block) add(f hpack.HeaderField) error {
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		return fmt.Errorf("invalid value of header %q", f.Name)
	}
	if name, ok := strings.CutPrefix(f.Name, ":"); ok {
		if len(b.header) > 0 {
			return errors.New("pseudo-header after a header")
		}
		if _, twice := b.pseudo[name]; twice {
			return fmt.Errorf("pseudo-header %q twice", f.Name)
		}
		b.pseudo[name] = f.Value
		return nil
	}
	if !httpguts.ValidHeaderFieldName(f.Name) || strings.ToLower(f.Name) != f.Name {
		return fmt.Errorf("invalid header name %q", f.Name)
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade": // RFC 9113 section 8.2.2
		return fmt.Errorf("header %q is not of HTTP/2", f.Name)
	case "te":
		if f.Value != "trailers" {
			return fmt.Errorf("te: %q is not of HTTP/2", f.Value)
		}
	}
	b.header.Add(f.Name, f.Value)
	return nil
}

// appendHeaders encodes fields in the order given, then h. Nothing enters the
// peer's dynamic table: what is alike from tunnel to tunnel is short, and a
// table that is never used cannot get out of step.
func appendHeaders(enc *hpack.Encoder, fields []hpack.HeaderField, h http.Header) error {
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			return err
		}
	}
	for name, values := range h {
		name = strings.ToLower(name)
		if !httpguts.ValidHeaderFieldName(name) {
			return fmt.Errorf("invalid header name %q", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return fmt.Errorf("invalid value of header %q", name)
			}
			if err := enc.WriteField(hpack.HeaderField{Name: name, Value: v}); err != nil {
				return err
			}
		}
	}
	return nil
}

// validAuthority reports whether s is host:port, the host an IP address (IPv6
// in brackets, without a zone) or a name in DNS characters.
func validAuthority(s string) bool {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Port() != 0 && a.Addr().Zone() == "" && a.String() == s
	}
	host, port, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return false
	}
	if host == "" || len(host) > 253 {
		return false
	}
	numeric := true // 1.2.3.999 is no address, and not a name either
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
				numeric = false
			case c < '0' || c > '9':
				return false
			}
		}
	}
	return !numeric
}

// printable makes words of ours or a peer's fit for a header and a log line.
func printable(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s))
}
