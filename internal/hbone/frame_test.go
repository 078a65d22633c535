package hbone

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestGoldenFrames: the bytes of every frame that this side writes.
func TestGoldenFrames(t *testing.T) {
	for name, c := range map[string]struct {
		got  []byte
		want string // length, type, flags, stream; payload
	}{
		"SETTINGS (6.5)": {
			appendSettings(nil, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 4 << 20}, {ID: http2.SettingMaxFrameSize, Val: 1 << 20}}),
			"00000c 04 00 00000000  0004 00400000 0005 00100000",
		},
		"SETTINGS ACK (6.5)":                {appendSettingsAck(nil), "000000 04 01 00000000"},
		"PING (6.7)":                        {appendPing(nil, false, [8]byte{1, 2, 3, 4, 5, 6, 7, 8}), "000008 06 00 00000000  0102030405060708"},
		"PING ACK (6.7)":                    {appendPing(nil, true, [8]byte{8}), "000008 06 01 00000000  0800000000000000"},
		"WINDOW_UPDATE of the tunnel (6.9)": {appendWindowUpdate(nil, 0, 0x00ff0001), "000004 08 00 00000000  00ff0001"},
		"WINDOW_UPDATE of a stream (6.9)":   {appendWindowUpdate(nil, 0x7fffffff, 1), "000004 08 00 7fffffff  00000001"},
		"RST_STREAM (6.4)":                  {appendReset(nil, 3, http2.ErrCodeConnect), "000004 03 00 00000003  0000000a"},
		"GOAWAY (6.8)":                      {appendGoAway(nil, 5, http2.ErrCodeEnhanceYourCalm, "calm"), "00000c 07 00 00000000  00000005 0000000b 63616c6d"},
		"DATA, END_STREAM (6.1)":            {header{length: 0, kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: 7}.append(nil), "000000 00 01 00000007"},
		"DATA, in a buffer (6.1)":           {bufferOf("hello").frame(header{kind: http2.FrameData, stream: 9}), "000005 00 00 00000009  68656c6c6f"},
		"HEADERS, largest length, appended": {header{length: 1<<24 - 1, kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders, stream: 1}.append([]byte{0xaa}), "aa ffffff 01 04 00000001"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.got, want) {
			t.Errorf("%s: %x, want %x", name, c.got, want)
		}
	}
}

func bufferOf(s string) *Buffer {
	b := NewBuffer(false)
	b.SetLen(copy(b.Space(), s))
	return b
}

// TestHeaderRoundTrip: the reserved bit (RFC 9113 section 4.1) is ignored.
func TestHeaderRoundTrip(t *testing.T) {
	h := header{length: 0x010203, kind: http2.FrameHeaders, flags: 0x25, stream: 0x7abbccdd}
	b := h.append(nil)
	if got := parseHeader(b); got != h {
		t.Errorf("%+v, want %+v", got, h)
	}
	b[5] |= 0x80
	if got := parseHeader(b); got != h {
		t.Errorf("with the reserved bit %+v, want %+v", got, h)
	}
}

// TestHeadersThatAreRefused: by kind, stream and length, with the error code of
// the specification.
func TestHeadersThatAreRefused(t *testing.T) {
	const settings, ping, goAway, window, reset = http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameWindowUpdate, http2.FrameRSTStream
	for _, c := range []struct {
		section string
		header  header
		want    http2.ErrCode // ErrCodeNo: fine
	}{
		{"6.1", header{kind: http2.FrameData, stream: 0}, http2.ErrCodeProtocol},
		{"6.1", header{kind: http2.FrameData, stream: 1}, http2.ErrCodeNo},
		{"6.2", header{kind: http2.FrameHeaders, stream: 0}, http2.ErrCodeProtocol},
		{"6.3", header{kind: http2.FramePriority, stream: 0, length: 5}, http2.ErrCodeProtocol},
		{"6.4", header{kind: reset, stream: 0, length: 4}, http2.ErrCodeProtocol},
		{"6.4", header{kind: reset, stream: 1, length: 3}, http2.ErrCodeFrameSize},
		{"6.4", header{kind: reset, stream: 1, length: 4}, http2.ErrCodeNo},
		{"6.5", header{kind: settings, stream: 1}, http2.ErrCodeProtocol},
		{"6.5", header{kind: settings, length: 5}, http2.ErrCodeFrameSize},
		{"6.5", header{kind: settings, flags: http2.FlagSettingsAck, length: 6}, http2.ErrCodeFrameSize},
		{"6.5", header{kind: settings, length: 12}, http2.ErrCodeNo},
		{"6.6", header{kind: http2.FramePushPromise, stream: 1, length: 4}, http2.ErrCodeProtocol},
		{"6.7", header{kind: ping, stream: 1, length: 8}, http2.ErrCodeProtocol},
		{"6.7", header{kind: ping, length: 7}, http2.ErrCodeFrameSize},
		{"6.8", header{kind: goAway, stream: 1, length: 8}, http2.ErrCodeProtocol},
		{"6.8", header{kind: goAway, length: 7}, http2.ErrCodeFrameSize},
		{"6.8", header{kind: goAway, length: 80}, http2.ErrCodeNo},
		{"6.9", header{kind: window, length: 5}, http2.ErrCodeFrameSize},
		{"6.10", header{kind: http2.FrameContinuation, stream: 0}, http2.ErrCodeProtocol},
		{"5.5", header{kind: 0xee, stream: 77, length: 1234}, http2.ErrCodeNo},
	} {
		if got := codeOf(t, c.header.check()); got != c.want {
			t.Errorf("section %s, %+v: %s, want %s", c.section, c.header, got, c.want)
		}
	}
}

func codeOf(t *testing.T, err error) http2.ErrCode {
	t.Helper()
	var code connectionError
	if err == nil {
		return http2.ErrCodeNo
	}
	if !errors.As(err, &code) {
		t.Fatalf("%v ends no tunnel", err)
	}
	return code.Code
}

// TestFragments: what padding and priority leave of a HEADERS frame (6.2).
func TestFragments(t *testing.T) {
	const padded, priority = http2.FlagHeadersPadded, http2.FlagHeadersPriority
	for _, c := range []struct {
		flags   http2.Flags
		payload string
		want    string
		code    http2.ErrCode
	}{
		{0, "abc", "abc", 0},
		{0, "", "", 0},
		{padded, "\x02abcPP", "abc", 0},
		{padded, "\x00abc", "abc", 0},
		{padded, "\x05PPPPP", "", 0},
		{padded, "\x06PPPPP", "", http2.ErrCodeProtocol},
		{padded, "", "", http2.ErrCodeFrameSize},
		{priority, "\x80\x00\x00\x03\x10abc", "abc", 0},
		{priority, "\x00\x00\x00\x03", "", http2.ErrCodeFrameSize},
		{priority, "\x80\x00\x00\x01\x10abc", "", http2.ErrCodeProtocol}, // on itself
		{padded | priority, "\x01\x00\x00\x00\x03\x10abcP", "abc", 0},
		{padded | priority, "\x04\x00\x00\x00\x03\x10abc", "", http2.ErrCodeProtocol},
	} {
		got, err := fragmentOf(header{kind: http2.FrameHeaders, flags: c.flags, stream: 1, length: len(c.payload)}, []byte(c.payload))
		if code := codeOf(t, err); string(got) != c.want || code != c.code {
			t.Errorf("flags %x, %q: %q, %s; want %q, %s", c.flags, c.payload, got, code, c.want, c.code)
		}
	}
}

// script is a server's life: what a peer sends, and what it must lead to.
func script() []byte {
	var b []byte
	b = append(b, http2.ClientPreface...)
	b = appendSettings(b, clientSettings())
	b = appendWindowUpdate(b, 0, 1<<20)
	b = appendSettingsAck(b)
	// :method CONNECT, :authority 192.0.2.1:80, literally (RFC 7541 section 6.2.2).
	block := append([]byte{0x02, 7}, "CONNECT"...)
	block = append(append(block, 0x01, 12), "192.0.2.1:80"...)
	b = append(header{length: 5, kind: http2.FrameHeaders, stream: 1}.append(b), block[:5]...)
	b = append(header{length: len(block) - 5, kind: http2.FrameContinuation, flags: http2.FlagContinuationEndHeaders, stream: 1}.append(b), block[5:]...)
	b = append(header{length: 5, kind: http2.FrameData, stream: 1}.append(b), "hello"...)
	b = append(header{length: 8, kind: http2.FrameData, flags: http2.FlagDataPadded, stream: 1}.append(b), "\x02worldPP"...)
	b = appendPing(b, false, [8]byte{1})
	b = appendWindowUpdate(b, 1, 1)
	b = header{kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: 1}.append(b)
	return b
}

// scripted is a session that reads and writes nothing by itself.
func scripted(got *[]string) *session {
	s := makeSession(discard{}, true, Options{}, nil)
	s.flushing = true // nobody else writes
	s.pingTimer = time.AfterFunc(time.Hour, func() {})
	s.incoming = func(st *stream, b *block) {
		*got = append(*got, "request "+b.pseudo["authority"])
		st.Divert(recorder{got})
	}
	return s
}

type recorder struct{ got *[]string }

func (r recorder) Take(p []byte) int { *r.got = append(*r.got, "data "+string(p)); return len(p) }
func (r recorder) End(err error)     { *r.got = append(*r.got, "end "+err.Error()) }

// TestEveryPartition: wherever the bytes of a tunnel are cut into reads, they
// mean the same; and a tunnel that ends anywhere but at its end has ended no
// stream in order.
func TestEveryPartition(t *testing.T) {
	whole := script()
	run := func(cuts ...int) ([]string, error) {
		var got []string
		s := scripted(&got)
		at := 0
		for _, cut := range append(cuts, len(whole)) {
			if err := s.feed(whole[at:cut]); err != nil {
				return got, err
			}
			at = cut
		}
		return got, nil
	}
	join := func(got []string) string { // data in one piece
		return strings.ReplaceAll(strings.Join(got, "|"), "|data ", "")
	}
	want := "request 192.0.2.1:80helloworld|end EOF"
	for cut := range whole {
		if got, err := run(cut); join(got) != want || err != nil {
			t.Fatalf("cut at %d: %q, %v; want %q", cut, join(got), err, want)
		}
	}
	for size := 1; size < 12; size++ {
		var cuts []int
		for at := size; at < len(whole); at += size {
			cuts = append(cuts, at)
		}
		if got, err := run(cuts...); join(got) != want || err != nil {
			t.Fatalf("in pieces of %d: %q, %v; want %q", size, join(got), err, want)
		}
	}
	for length := range whole {
		var got []string
		s := scripted(&got)
		if err := s.feed(whole[:length]); err != nil {
			t.Fatalf("the first %d bytes: %v", length, err)
		}
		if strings.Contains(join(got), "EOF") {
			t.Fatalf("the first %d bytes of %d end the stream", length, len(whole))
		}
	}
}

// FuzzFrames: whatever bytes come, they are parsed as golang.org/x/net parses
// them as long as it does, in any partition alike, and nothing panics.
func FuzzFrames(f *testing.F) {
	f.Add(script()[len(http2.ClientPreface):], 3)
	f.Add(appendGoAway(appendSettings(nil, nil), 0, 0, ""), 1)
	f.Add(append(appendSettings(nil, nil), header{length: 6, kind: http2.FrameData, flags: http2.FlagDataPadded, stream: 1}.append(nil)...), 5)
	f.Fuzz(func(t *testing.T, frames []byte, size int) {
		if size < 1 {
			size = 1
		}
		input := append([]byte(http2.ClientPreface), frames...)
		var whole, pieces []string
		a, b := scripted(&whole), scripted(&pieces)
		errWhole := a.feed(input)
		var errPieces error
		for rest := input; len(rest) > 0 && errPieces == nil; {
			n := min(size, len(rest))
			errPieces = b.feed(rest[:n])
			rest = rest[n:]
		}
		if (errWhole == nil) != (errPieces == nil) {
			t.Fatalf("at once: %v; in pieces of %d: %v", errWhole, size, errPieces)
		}
		if frames, err := framesOf(frames); err == nil && a.frames.Load() != uint64(frames) && errWhole == nil {
			t.Fatalf("%d frames, golang.org/x/net reads %d", a.frames.Load(), frames)
		}
	})
}

// framesOf counts whole frames as golang.org/x/net reads them.
func framesOf(b []byte) (n int, err error) {
	r := http2.NewFramer(io.Discard, bytes.NewReader(b))
	r.SetMaxReadFrameSize(maxReadFrame)
	for {
		_, err := r.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
	}
}
