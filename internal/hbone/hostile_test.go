package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// raw is a peer that sends whatever frames it likes.
type raw struct {
	*http2.Framer
	conn *tls.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
	// seen receives every frame, as text; closed at the end of the connection.
	seen chan string
}

func newRaw(t *testing.T, conn *tls.Conn, client bool) *raw {
	t.Helper()
	p := &raw{Framer: http2.NewFramer(conn, conn), conn: conn, seen: make(chan string, 1<<16)}
	p.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.buf)
	if client {
		io.WriteString(conn, http2.ClientPreface)
	} else if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	go p.watch()
	return p
}

func (p *raw) watch() {
	defer close(p.seen)
	defer p.conn.Close()
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return
		}
		text := f.Header().Type.String()
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, _ := dec.DecodeFull(f.HeaderBlockFragment())
			for _, h := range fields {
				text += " " + h.Value
			}
		case *http2.RSTStreamFrame:
			text += " " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			text += " " + f.ErrCode.String()
		case *http2.WindowUpdateFrame, *http2.SettingsFrame, *http2.PingFrame:
			continue // of no interest, and many
		}
		select {
		case p.seen <- text:
		default:
		}
	}
}

// expect reads what the other side sends until one begins with want.
func (p *raw) expect(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	var seen []string
	for {
		select {
		case f, ok := <-p.seen:
			if !ok {
				t.Fatalf("connection ended without %q; seen %q", want, seen)
			}
			if strings.HasPrefix(f, want) {
				return
			}
			seen = append(seen, f)
		case <-timeout:
			t.Fatalf("no %q; seen %q", want, seen)
		}
	}
}

func (p *raw) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *raw) request(id uint32, fields ...string) error {
	return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: p.block(fields...)})
}

func (p *raw) connect(id uint32) error {
	return p.request(id, ":method", "CONNECT", ":authority", "192.0.2.1:80")
}

// serveRaw is a server whose client is raw; its end arrives on the channel.
func serveRaw(t *testing.T, h func(context.Context, *hbone.Incoming)) (*raw, chan error) {
	t.Helper()
	c, s := tlsPair(t)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- hbone.Serve(ctx, s, hbone.Options{DrainTimeout: -1}, h) }()
	p := newRaw(t, c, true)
	t.Cleanup(func() {
		cancel()
		c.NetConn().Close()
		for range p.seen {
		}
	})
	return p, ended
}

// TestMalformedRequests: each is answered 400 or reset, none reaches the
// handler, and the tunnel goes on.
func TestMalformedRequests(t *testing.T) {
	connect := func(authority string) []string {
		return []string{":method", "CONNECT", ":authority", authority}
	}
	p, _ := serveRaw(t, func(_ context.Context, in *hbone.Incoming) {
		if in.Authority != "192.0.2.1:80" {
			t.Errorf("%q reached the handler", in.Authority)
		}
		in.Refuse(503, "reached")
	})
	p.WriteSettings()
	id := uint32(1)
	for name, fields := range map[string][]string{
		"GET":                      {":method", "GET", ":scheme", "https", ":path", "/", ":authority", "192.0.2.1:80"},
		"CONNECT with a path":      {":method", "CONNECT", ":authority", "192.0.2.1:80", ":path", "/", ":scheme", "https"},
		"extended CONNECT":         {":method", "CONNECT", ":authority", "192.0.2.1:80", ":path", "/", ":scheme", "https", ":protocol", "websocket"},
		"lower-case connect":       {":method", "connect", ":authority", "192.0.2.1:80"},
		"no authority":             {":method", "CONNECT"},
		"authority twice":          {":method", "CONNECT", ":authority", "192.0.2.1:80", ":authority", "192.0.2.2:80"},
		"unknown pseudo-header":    {":method", "CONNECT", ":authority", "192.0.2.1:80", ":evil", "x"},
		"pseudo-header after":      {":method", "CONNECT", "a", "b", ":authority", "192.0.2.1:80"},
		"a response":               {":status", "200"},
		"upper-case name":          {":method", "CONNECT", ":authority", "192.0.2.1:80", "Baggage", "x"},
		"line break in a value":    {":method", "CONNECT", ":authority", "192.0.2.1:80", "baggage", "a\r\nx: y"},
		"NUL in a value":           {":method", "CONNECT", ":authority", "192.0.2.1:80", "baggage", "a\x00"},
		"transfer-encoding":        {":method", "CONNECT", ":authority", "192.0.2.1:80", "transfer-encoding", "chunked"},
		"too long":                 {":method", "CONNECT", ":authority", "192.0.2.1:80", "cookie", strings.Repeat("~", 100<<10)},
		"no port":                  connect("192.0.2.1"),
		"port 0":                   connect("192.0.2.1:0"),
		"port 65536":               connect("192.0.2.1:65536"),
		"port with a sign":         connect("192.0.2.1:+80"),
		"port with a zero":         connect("192.0.2.1:080"),
		"port in letters":          connect("192.0.2.1:http"),
		"no host":                  connect(":80"),
		"IPv6 without brackets":    connect("2001:db8::1:80"),
		"IPv6 with a zone":         connect("[fe80::1%eth0]:80"),
		"IPv6 spelled differently": connect("[2001:db8:0::1]:80"),
		"not quite IPv4":           connect("192.0.2.999:80"),
		"octal IPv4":               connect("192.0.02.1:80"),
		"user":                     connect("me@192.0.2.1:80"),
		"path":                     connect("192.0.2.1:80/x"),
		"space":                    connect("192.0.2.1 :80"),
		"NUL in the name":          connect("a\x00b:80"),
		"not ASCII":                connect("ä.example:80"),
		"empty label":              connect("a..b:80"),
		"name too long":            connect(strings.Repeat("a.", 127) + "b:80"),
	} {
		t.Run(name, func(t *testing.T) {
			block := p.block(fields...)
			const part = 16 << 10
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: len(block) <= part, BlockFragment: block[:min(part, len(block))]})
			for at := part; at < len(block); at += part {
				p.WriteContinuation(id, at+part >= len(block), block[at:min(at+part, len(block))])
			}
			id += 2
			p.expect(t, "HEADERS 400")
		})
	}
	for _, authority := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "cart.shop.svc.cluster.local:8080", "a_b.example:1"} {
		if authority == "192.0.2.1:80" {
			p.request(id, connect(authority)...)
			p.expect(t, "HEADERS 503 reached")
		}
		id += 2
	}
}

// TestMalformedIsAStreamError: what HTTP/2 forbids is reset with PROTOCOL_ERROR
// after its 400 (RFC 9113 section 8.1.1), whether the request has ended or not;
// what is only not served here is not.
func TestMalformedIsAStreamError(t *testing.T) {
	get := []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "192.0.2.1:80"}
	connect := []string{":method", "CONNECT", ":authority", "192.0.2.1:80"}
	for name, c := range map[string]struct {
		fields []string
		open   string // the answer to a request that has not ended, after its 400
		ended  string // and to one that has; empty if none is due
	}{
		"GET":                      {get, "RST_STREAM NO_ERROR", ""},
		"GET without a path":       {get[:4], "RST_STREAM PROTOCOL_ERROR", "RST_STREAM PROTOCOL_ERROR"},
		"GET, with te: gzip":       {append(slices.Clone(get), "te", "gzip"), "RST_STREAM PROTOCOL_ERROR", "RST_STREAM PROTOCOL_ERROR"},
		"GET, with te: trailers":   {append(slices.Clone(get), "te", "trailers"), "RST_STREAM NO_ERROR", ""},
		"CONNECT with a path":      {append(slices.Clone(connect), ":path", "/"), "RST_STREAM PROTOCOL_ERROR", "RST_STREAM PROTOCOL_ERROR"},
		"CONNECT to nowhere":       {connect[:2], "RST_STREAM PROTOCOL_ERROR", "RST_STREAM PROTOCOL_ERROR"},
		"CONNECT to a bad address": {[]string{":method", "CONNECT", ":authority", "192.0.2.1"}, "RST_STREAM NO_ERROR", ""},
		"a response":               {[]string{":status", "200"}, "RST_STREAM PROTOCOL_ERROR", "RST_STREAM PROTOCOL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := serveRaw(t, func(_ context.Context, in *hbone.Incoming) { t.Error("reached the handler") })
			p.WriteSettings()
			for i, want := range []string{c.open, c.ended} {
				ended := i == 1
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(4*i + 1), EndStream: ended, EndHeaders: true, BlockFragment: p.block(c.fields...)})
				p.expect(t, "HEADERS 400")
				if want == "" { // the next that comes answers another request
					p.request(uint32(4*i+3), ":method", "GET")
					want = "HEADERS 400"
				}
				if got := <-p.seen; !strings.HasPrefix(got, want) {
					t.Errorf("ended %t: 400, then %q, want %q", ended, got, want)
				}
			}
		})
	}
}

// faults are what floods are called, where their name does not begin with it.
var faults = map[string]hbone.Fault{
	"rapid": hbone.ResetFlood, "made": hbone.ResetFlood, "malformed": hbone.ResetFlood, "more": hbone.ResetFlood,
	"PING": hbone.PingFlood, "SETTINGS": hbone.SettingsFlood, "PRIORITY": hbone.PriorityFlood, "GOAWAY": hbone.GoAwayFlood,
	"unknown": hbone.UnknownFrameFlood, "big": hbone.UnknownFrameFlood, "WINDOW_UPDATE": hbone.WindowUpdateFlood,
	"empty": hbone.EmptyDataFlood, "DATA": hbone.ResetFlood,
	"CONTINUATION,": hbone.HeaderFlood, "HPACK": hbone.HeaderFlood, "cookies,": hbone.HeaderFlood,
	"frame": hbone.ProtocolError, "window": hbone.ProtocolError,
}

// TestFloods: work that carries nothing is cut off long before a flood's size,
// the tunnel's end says why, the process holds nothing of it, and whoever else is
// served by it goes on being served.
func TestFloods(t *testing.T) {
	header := func(length int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
		b := []byte{byte(length >> 16), byte(length >> 8), byte(length), byte(kind), byte(flags)}
		return binary.BigEndian.AppendUint32(b, id)
	}
	type flood struct {
		before func(p *raw)
		frame  func(p *raw, i int) error
	}
	id := func(i int) uint32 { return uint32(2*i + 1) }
	const frames = 20_000
	neighbour := tunnel(t, hbone.Options{}, accepted(t, echo))
	for name, f := range map[string]flood{
		"rapid reset": {frame: func(p *raw, i int) error {
			p.connect(id(i))
			return p.WriteRSTStream(id(i), http2.ErrCodeCancel)
		}},
		"made to reset, by window updates of zero": {frame: func(p *raw, i int) error {
			p.connect(id(i))
			return p.WriteRawFrame(http2.FrameWindowUpdate, 0, id(i), make([]byte, 4))
		}},
		"made to reset, by windows that overflow": {frame: func(p *raw, i int) error {
			p.connect(id(i))
			return p.WriteWindowUpdate(id(i), 1<<31-1)
		}},
		"made to reset, by headers twice": {frame: func(p *raw, i int) error {
			p.connect(id(i))
			return p.connect(id(i))
		}},
		"malformed requests": {frame: func(p *raw, i int) error { return p.request(id(i), ":method", "GET") }},
		"more streams than allowed": {frame: func(p *raw, i int) error {
			return p.connect(id(i))
		}},
		"PING":     {frame: func(p *raw, i int) error { return p.WritePing(false, [8]byte{}) }},
		"PING ACK": {frame: func(p *raw, i int) error { return p.WritePing(true, [8]byte{}) }},
		"SETTINGS": {frame: func(p *raw, i int) error { return p.WriteSettings() }},
		"SETTINGS that move windows": {frame: func(p *raw, i int) error {
			return p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i%2) << 30})
		}},
		"SETTINGS of the header table": {frame: func(p *raw, i int) error {
			return p.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i%2) << 12})
		}},
		"SETTINGS ACK": {frame: func(p *raw, i int) error { return p.WriteSettingsAck() }},
		"PRIORITY":     {frame: func(p *raw, i int) error { return p.WritePriority(id(i), http2.PriorityParam{Weight: 1}) }},
		"unknown":      {frame: func(p *raw, i int) error { return p.WriteRawFrame(0x77, 0, 0, nil) }},
		"GOAWAY":       {frame: func(p *raw, i int) error { return p.WriteGoAway(0, http2.ErrCodeNo, nil) }},
		"WINDOW_UPDATE of the tunnel": {frame: func(p *raw, i int) error {
			return p.WriteWindowUpdate(0, 1)
		}},
		"WINDOW_UPDATE of a stream": {
			before: func(p *raw) { p.connect(1) },
			frame:  func(p *raw, i int) error { return p.WriteWindowUpdate(1, 1) },
		},
		"empty DATA": {
			before: func(p *raw) { p.connect(1) },
			frame:  func(p *raw, i int) error { return p.WriteData(1, false, nil) },
		},
		"empty DATA, but for padding": {
			before: func(p *raw) { p.connect(1) },
			frame:  func(p *raw, i int) error { return p.WriteDataPadded(1, false, nil, make([]byte, 255)) },
		},
		"CONTINUATION, empty": {
			before: func(p *raw) {
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			},
			frame: func(p *raw, i int) error { return p.WriteContinuation(1, false, nil) },
		},
		"CONTINUATION, full": {
			before: func(p *raw) {
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			},
			frame: func(p *raw, i int) error {
				return p.WriteContinuation(1, false, p.block("a", strings.Repeat("~", 16<<10)))
			},
		},
		"HPACK bomb": {
			before: func(p *raw) {
				p.request(1, ":method", "CONNECT", ":authority", "192.0.2.1:80", "a", strings.Repeat("~", 3000))
			},
			frame: func(p *raw, i int) error { // index 62: the header above, 60,000 times
				block := append(p.block(":method", "CONNECT", ":authority", "192.0.2.1:80"), bytes.Repeat([]byte{0x80 | 62}, 60_000)...)
				return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id(i + 1), EndHeaders: true, BlockFragment: block})
			},
		},
		"cookies, one after the other": {
			before: func(p *raw) {
				p.request(1, ":method", "CONNECT", ":authority", "192.0.2.1:80", "cookie", strings.Repeat("~", 3000))
			},
			frame: func(p *raw, i int) error {
				block := append(p.block(":method", "CONNECT", ":authority", "192.0.2.1:80"), bytes.Repeat([]byte{0x80 | 62}, 60_000)...)
				return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id(i + 1), EndHeaders: true, BlockFragment: block})
			},
		},
		"big frame that is not DATA": {frame: func(p *raw, i int) error {
			return p.WriteRawFrame(0x77, 0, 0, make([]byte, 1<<20))
		}},
		"frame beyond the limit": {frame: func(p *raw, i int) error {
			_, err := p.conn.Write(header(1<<20+1, http2.FrameData, 0, 1))
			return err
		}},
		"window exceeded": {
			before: func(p *raw) { p.connect(1) },
			frame:  func(p *raw, i int) error { return p.WriteData(1, false, make([]byte, 64<<10)) },
		},
		"DATA on streams that were reset": {frame: func(p *raw, i int) error {
			if i < 300 {
				p.connect(id(i))
				p.WriteRSTStream(id(i), http2.ErrCodeCancel)
			}
			return p.WriteData(1, false, nil)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			p, ended := serveRaw(t, func(ctx context.Context, in *hbone.Incoming) {
				if st, err := in.Accept(); err == nil {
					<-ctx.Done()
					st.Close()
				}
			})
			p.WriteSettings()
			if f.before != nil {
				f.before(p)
			}
			served := make(chan error, 1)
			go func() { served <- roundTrips(neighbour, 20) }()
			sent := 0
			for ; sent < frames; sent++ {
				if err := f.frame(p, sent); err != nil {
					break
				}
			}
			select {
			case err := <-ended:
				if !errors.Is(err, hbone.ErrTunnelClosed) {
					t.Errorf("ended with %v", err)
				}
				word, _, _ := strings.Cut(name, " ")
				if got := hbone.FaultOf(err); got != faults[word] {
					t.Errorf("called %q, want %q", got, faults[word])
				}
				t.Logf("cut after at most %d frames: %v", sent, err)
			case <-time.After(5 * time.Second):
				t.Fatalf("lives on after %d frames", sent)
			}
			select {
			case err := <-served:
				if err != nil {
					t.Errorf("another tunnel: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("another tunnel of the process stands still")
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
				t.Errorf("heap grew by %d KiB", grown>>10)
			}
		})
	}
}

// roundTrips opens a stream n times, and has something echoed in it.
func roundTrips(r *rig, n int) error {
	for range n {
		st, err := r.Open(context.Background(), hbone.Request{Authority: target})
		if err != nil {
			return err
		}
		io.WriteString(st, "hello")
		st.CloseWrite()
		if b, err := io.ReadAll(st); string(b) != "hello" || err != nil {
			return fmt.Errorf("%q came back: %w", b, err)
		}
		st.Close()
	}
	return nil
}

// TestTinyFramesDoNotAmplify: a window full of one-byte frames costs about a
// window, not a buffer for each.
func TestTinyFramesDoNotAmplify(t *testing.T) {
	reading := make(chan hbone.Stream)
	p, _ := serveRaw(t, accepted(t, func(st hbone.Stream) {
		reading <- st
		<-reading
	}))
	p.WriteSettings()
	p.connect(1)
	st := <-reading
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 200_000
	frame := []byte{0, 0, 1, byte(http2.FrameData), 0, 0, 0, 0, 1, 'x'}
	if _, err := p.conn.Write(bytes.Repeat(frame, n)); err != nil {
		t.Fatal(err)
	}
	p.WritePing(false, [8]byte{})
	p.request(3, ":method", "GET")
	p.expect(t, "HEADERS 400") // everything before has been read
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("%d bytes in frames of one cost %d KiB", n, grown>>10)
	}
	if got, err := io.ReadFull(st, make([]byte, n)); got != n || err != nil {
		t.Errorf("read %d, %v", got, err)
	}
	reading <- st
}

// TestBrokenPeers: what breaks the tunnel ends it with the error of the
// specification, whichever side breaks it.
func TestBrokenPeers(t *testing.T) {
	for name, c := range map[string]struct {
		send func(p *raw)
		want string
	}{
		"first frame is not SETTINGS":  {func(p *raw) { p.WritePing(false, [8]byte{}) }, "GOAWAY PROTOCOL_ERROR"},
		"first frame is an ACK":        {func(p *raw) { p.WriteSettingsAck() }, "GOAWAY PROTOCOL_ERROR"},
		"DATA on an idle stream":       {func(p *raw) { p.WriteSettings(); p.WriteData(1, false, []byte("x")) }, "GOAWAY PROTOCOL_ERROR"},
		"DATA on stream 0":             {func(p *raw) { p.WriteSettings(); p.WriteData(0, false, []byte("x")) }, "GOAWAY PROTOCOL_ERROR"},
		"RST_STREAM on an idle stream": {func(p *raw) { p.WriteSettings(); p.WriteRSTStream(1, 0) }, "GOAWAY PROTOCOL_ERROR"},
		"WINDOW_UPDATE on an idle one": {func(p *raw) { p.WriteSettings(); p.WriteWindowUpdate(1, 1) }, "GOAWAY PROTOCOL_ERROR"},
		"WINDOW_UPDATE of zero":        {func(p *raw) { p.WriteSettings(); p.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, "GOAWAY PROTOCOL_ERROR"},
		"window overflows":             {func(p *raw) { p.WriteSettings(); p.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY FLOW_CONTROL_ERROR"},
		"initial window overflows":     {func(p *raw) { p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "GOAWAY FLOW_CONTROL_ERROR"},
		"frame size of 0 in SETTINGS":  {func(p *raw) { p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize}) }, "GOAWAY PROTOCOL_ERROR"},
		"SETTINGS of 5 bytes":          {func(p *raw) { p.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, "GOAWAY FRAME_SIZE_ERROR"},
		"HEADERS on an even stream":    {func(p *raw) { p.WriteSettings(); p.connect(2) }, "GOAWAY PROTOCOL_ERROR"},
		"broken HPACK": {func(p *raw) {
			p.WriteSettings()
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff}})
		}, "GOAWAY COMPRESSION_ERROR"},
		"HEADERS padded beyond its end": {func(p *raw) {
			p.WriteSettings()
			p.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, []byte{200, 1})
		}, "GOAWAY PROTOCOL_ERROR"},
		"DATA padded beyond its end": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{200, 1})
		}, "GOAWAY PROTOCOL_ERROR"},
		"DATA padded, but empty": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil)
		}, "GOAWAY FRAME_SIZE_ERROR"},
		"CONTINUATION out of nowhere": {func(p *raw) { p.WriteSettings(); p.WriteContinuation(1, true, nil) }, "GOAWAY PROTOCOL_ERROR"},
		"another frame instead of CONTINUATION": {func(p *raw) {
			p.WriteSettings()
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			p.WritePing(false, [8]byte{})
		}, "GOAWAY PROTOCOL_ERROR"},
		"trailers on a tunnelled connection": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: p.block("a", "b")})
		}, "RST_STREAM PROTOCOL_ERROR"},
		"DATA after END_STREAM": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteData(1, true, nil)
			p.WriteData(1, false, []byte("x"))
		}, "RST_STREAM STREAM_CLOSED"},
		"a stream's identifier used again": {func(p *raw) { p.WriteSettings(); p.connect(3); p.connect(1) }, "GOAWAY PROTOCOL_ERROR"},
		"a stream's identifier used again, both halves closed": {func(p *raw) {
			p.WriteSettings()
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: p.block(":method", "GET", ":scheme", "https", ":path", "/")})
			p.connect(1)
		}, "GOAWAY PROTOCOL_ERROR"},
		"DATA after both halves closed": {func(p *raw) {
			p.WriteSettings()
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: p.block(":method", "GET", ":scheme", "https", ":path", "/")})
			p.WriteData(1, false, []byte("x"))
		}, "RST_STREAM STREAM_CLOSED"},
		"trailers after END_STREAM": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteData(1, true, nil)
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: p.block("a", "b")})
		}, "RST_STREAM STREAM_CLOSED"},
		"DATA after RST_STREAM": {func(p *raw) {
			p.WriteSettings()
			p.connect(1)
			p.WriteRSTStream(1, http2.ErrCodeCancel)
			p.WriteData(1, false, []byte("x"))
		}, "RST_STREAM STREAM_CLOSED"},
		"PUSH_PROMISE": {func(p *raw) {
			p.WriteSettings()
			p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, "GOAWAY PROTOCOL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := serveRaw(t, func(ctx context.Context, in *hbone.Incoming) {
				if st, err := in.Accept(); err == nil {
					io.Copy(io.Discard, st)
					time.Sleep(10 * time.Millisecond) // be there when more comes
				}
			})
			c.send(p)
			p.expect(t, c.want)
		})
	}
}

// TestLateFramesAreDropped: what was under way when this side reset a stream
// breaks nothing, and is not answered (RFC 9113 section 5.1).
func TestLateFramesAreDropped(t *testing.T) {
	p, _ := serveRaw(t, accepted(t, func(st hbone.Stream) { st.Reset() }))
	p.WriteSettings()
	for id := uint32(1); id < 2000; id += 2 {
		p.connect(id)
		p.expect(t, "RST_STREAM CONNECT_ERROR")
		p.WriteData(id, false, []byte("x"))
		p.WriteWindowUpdate(id, 1)
		if id%10 == 1 {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: p.block("a", "b")})
		}
	}
	p.WriteData(1, false, []byte("x")) // long ago
	p.request(2001, ":method", "GET")
	if got := <-p.seen; !strings.HasPrefix(got, "HEADERS 400") {
		t.Errorf("answered with %q", got)
	}
}

// TestClientAgainstBrokenServers: Open fails, and says why.
func TestClientAgainstBrokenServers(t *testing.T) {
	answer := func(fields ...string) func(p *raw) {
		return func(p *raw) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(fields...)})
		}
	}
	for name, c := range map[string]struct {
		answer func(p *raw)
		check  func(err error) bool
	}{
		"refused stream":            {func(p *raw) { p.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, func(err error) bool { return errors.Is(err, hbone.ErrNotProcessed) }},
		"GOAWAY before the request": {func(p *raw) { p.WriteGoAway(0, http2.ErrCodeNo, nil) }, func(err error) bool { return errors.Is(err, hbone.ErrNotProcessed) }},
		"reset":                     {func(p *raw) { p.WriteRSTStream(1, http2.ErrCodeInternal) }, func(err error) bool { return errors.Is(err, hbone.ErrReset) && !errors.Is(err, hbone.ErrNotProcessed) }},
		"connection cut":            {func(p *raw) { p.conn.NetConn().Close() }, func(err error) bool { return errors.Is(err, hbone.ErrTunnelClosed) && !errors.Is(err, io.EOF) }},
		"no status":                 {answer("a", "b"), func(err error) bool { return errors.Is(err, hbone.ErrReset) }},
		"status in words":           {answer(":status", "fine"), func(err error) bool { return errors.Is(err, hbone.ErrReset) }},
		"status of four digits":     {answer(":status", "2000"), func(err error) bool { return errors.Is(err, hbone.ErrReset) }},
		"a request":                 {answer(":method", "CONNECT", ":status", "200"), func(err error) bool { return errors.Is(err, hbone.ErrReset) }},
		"204":                       {answer(":status", "204"), func(err error) bool { return errors.As(err, new(*hbone.StatusError)) }},
		"407 after 103": {func(p *raw) { answer(":status", "103")(p); answer(":status", "407")(p) }, func(err error) bool {
			s := (*hbone.StatusError)(nil)
			return errors.As(err, &s) && s.Code == 407
		}},
		"headers without end": {func(p *raw) { answer(":status", "200", "cookie", strings.Repeat("~", 30<<10))(p) }, func(err error) bool { return errors.Is(err, hbone.ErrReset) }},
	} {
		t.Run(name, func(t *testing.T) {
			c1, s1 := tlsPair(t)
			client, err := hbone.NewClient(c1, hbone.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := newRaw(t, s1, false)
			p.WriteSettings()
			opened := make(chan error, 1)
			go func() {
				_, err := client.Open(t.Context(), hbone.Request{Authority: target})
				opened <- err
			}()
			p.expect(t, "HEADERS CONNECT")
			c.answer(p)
			select {
			case err := <-opened:
				if !c.check(err) {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("still waiting")
			}
			client.Close()
			s1.NetConn().Close()
			for range p.seen {
			}
		})
	}
}

// TestPeerThatNeverCloses does not keep this side from ending.
func TestPeerThatNeverCloses(t *testing.T) {
	c, s := tlsPair(t)
	defer s.NetConn().Close()
	go io.Copy(io.Discard, s.NetConn())
	client, err := hbone.NewClient(c, hbone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "Close", func() { client.Close() })
}

func FuzzServe(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x01hello"))
	f.Fuzz(func(t *testing.T, frames []byte) {
		c, s := tcpPair(t)
		ended := make(chan error, 1)
		go func() { ended <- hbone.Serve(context.Background(), s, hbone.Options{}, accepted(t, echo)) }()
		go io.Copy(io.Discard, c)
		io.WriteString(c, http2.ClientPreface)
		c.Write(frames)
		c.Close()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal(fmt.Sprintf("%q keeps the tunnel alive", frames))
		}
	})
}
