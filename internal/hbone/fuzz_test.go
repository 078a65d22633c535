package hbone

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// asking is a client session that reads and writes nothing by itself, with three
// streams that have asked and got no answer.
func asking() (s *session, streams []*stream) {
	s = makeSession(discard{}, false, Options{}, nil)
	s.flushing = true // nobody else writes
	s.pingTimer = time.AfterFunc(time.Hour, func() {})
	for range 3 {
		st, _, err := s.open(Request{Authority: netip.MustParseAddrPort("192.0.2.1:80"), Header: http.Header{"Baggage": {"a=b"}}})
		if err != nil {
			panic(err)
		}
		streams = append(streams, st)
	}
	return s, streams
}

// answers is a server's life: it accepts, sends, refuses, resets and goes away.
func answers() []byte {
	ok, refused := []byte{0x88}, append([]byte{0x08, 3}, "503"...) // :status (RFC 7541 appendix A)
	var b []byte
	b = appendSettings(b, serverSettings())
	b = appendWindowUpdate(b, 0, 1<<20)
	b = appendSettingsAck(b)
	b = append(header{length: len(ok), kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders, stream: 1}.append(b), ok...)
	b = append(header{length: 5, kind: http2.FrameData, stream: 1}.append(b), "hello"...)
	b = append(header{length: len(refused), kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders | http2.FlagHeadersEndStream, stream: 3}.append(b), refused...)
	b = appendReset(b, 3, http2.ErrCodeNo)
	b = appendPing(b, false, [8]byte{1})
	b = appendGoAway(b, 3, http2.ErrCodeNo, "drain")
	b = header{kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: 1}.append(b)
	return b
}

// FuzzClient: whatever bytes a server sends, in any partition alike, what a client
// holds stays within what it allowed and is accounted for, and once the tunnel
// has ended, nobody waits for an answer.
func FuzzClient(f *testing.F) {
	f.Add(answers(), 7)
	f.Add(append(appendSettings(nil, nil), appendReset(nil, 1, http2.ErrCodeRefusedStream)...), 1)
	f.Add(append(appendSettings(nil, nil), appendGoAway(nil, 0, http2.ErrCodeNo, "")...), 9)
	f.Add(append(answers(), appendWindowUpdate(nil, 1, maxWindow)...), 100)
	f.Fuzz(func(t *testing.T, frames []byte, size int) {
		size = max(size, 1)
		a, whole := asking()
		b, pieces := asking()
		errWhole := a.feed(frames)
		var errPieces error
		for piece := range slices.Chunk(frames, size) {
			if errPieces = b.feed(piece); errPieces != nil {
				break
			}
		}
		if (errWhole == nil) != (errPieces == nil) {
			t.Fatalf("at once: %v; in pieces of %d: %v", errWhole, size, errPieces)
		}
		if fault := accounts(a); fault != "" && errWhole == nil {
			t.Fatal(fault)
		}
		a.fail(cmp.Or(errWhole, errClosed))
		b.fail(cmp.Or(errPieces, errClosed))
		for i := range whole {
			select {
			case <-whole[i].ready:
			default:
				t.Fatalf("stream %d waits for an answer", whole[i].id)
			}
			one, err1 := io.ReadAll(whole[i]) // which must not wait either
			other, err2 := io.ReadAll(pieces[i])
			if !bytes.Equal(one, other) || fmt.Sprint(err1, whole[i].answer) != fmt.Sprint(err2, pieces[i].answer) {
				t.Fatalf("stream %d: %q, %v, %v at once; %q, %v, %v in pieces of %d",
					whole[i].id, one, err1, whole[i].answer, other, err2, pieces[i].answer, size)
			}
		}
		if len(a.streams) > 0 {
			t.Fatalf("%d streams outlive their tunnel", len(a.streams))
		}
	})
}

// accounts finds what is wrong with a session's books; empty if nothing is.
func accounts(s *session) string {
	var held int64
	for id, st := range s.streams {
		n := int64(0)
		for _, c := range st.inbox.queue {
			n += int64(c.w - c.r)
		}
		if st == s.parser.st {
			n += int64(s.parser.left) // a frame is accounted for when it begins
		}
		if st.buffered != n || st.recvWindow+n > st.window || st.err != nil {
			return fmt.Sprintf("stream %d holds %d and accounts for %d, may get %d: %v", id, n, st.buffered, st.recvWindow, st.err)
		}
		held += n
	}
	switch {
	case s.buffered < held:
		return fmt.Sprintf("%d bytes are accounted for, streams hold %d", s.buffered, held)
	case s.recvWindow > tunnelWindow:
		return fmt.Sprintf("the tunnel's window is %d", s.recvWindow)
	case s.sendWindow > maxWindow:
		return fmt.Sprintf("the tunnel may send %d", s.sendWindow)
	case s.answers > len(s.control):
		return fmt.Sprintf("%d bytes of answers in %d", s.answers, len(s.control))
	}
	return ""
}

// FuzzAuthority: an authority is valid exactly if the standard library, by other
// ways, finds an address or a name and a port in it, and nothing else.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{
		"192.0.2.1:80", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:80", "cart.shop.svc.cluster.local:8080", "a_b:1", "1.2.3.999:80",
		"[fe80::1%eth0]:80", "me@a:80", "a:080", "a:65536", "a.:80", "[a]:80", "0x7f.1:80", "a/b:80", "ä:80", "::1:80",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := validAuthority(s), isAuthority(s); got != want {
			t.Fatalf("%q: %t, want %t", s, got, want)
		}
	})
}

var (
	dnsName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*$`)
	notWord = regexp.MustCompile(`^[0-9.]*$`)
)

func isAuthority(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != port || net.JoinHostPort(host, port) != s {
		return false
	}
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host != s || u.Hostname() != host || u.Port() != port || u.User != nil || u.Path+u.RawQuery+u.Fragment != "" {
		return false
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == "" && netip.AddrPortFrom(addr, uint16(n)).String() == s
	}
	return len(host) <= 253 && dnsName.MatchString(host) && !notWord.MatchString(host)
}

// FuzzHeaders: a block of headers is read alike in one piece and in many; what is
// taken for a request stays within the limits and asks for something that can be
// connected.
func FuzzHeaders(f *testing.F) {
	block := func(fields ...string) []byte {
		var buf bytes.Buffer
		enc := hpack.NewEncoder(&buf)
		for i := 0; i < len(fields); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return buf.Bytes()
	}
	f.Add(block(":method", "CONNECT", ":authority", "192.0.2.1:80", "baggage", "k8s.namespace.name=shop", "forwarded", `for="192.0.2.7:1"`), 7)
	f.Add(block(":method", "CONNECT", ":authority", "a.b:80", "cookie", strings.Repeat("~", 3000)), 1)
	f.Add(append(block(":method", "CONNECT", ":authority", "192.0.2.1:80", "a", strings.Repeat("b", 300)), bytes.Repeat([]byte{0x80 | 62}, 500)...), 100)
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x20, 0x82}, 2) // changes of the table's size
	f.Fuzz(func(t *testing.T, fragment []byte, size int) {
		whole, pieces := newHeaderReader(serverHeaderList), newHeaderReader(serverHeaderList)
		h := header{kind: http2.FrameHeaders, stream: 1}
		whole.begin(h, fragment)
		a, errA := whole.end()
		size = max(1, size%len(append(fragment, 0)))
		pieces.begin(h, fragment[:min(size, len(fragment))])
		for rest := fragment[min(size, len(fragment)):]; len(rest) > 0; {
			n := min(max(size, len(fragment)/maxContinuations+1), len(rest))
			if err := pieces.more(rest[:n]); err != nil {
				return // too many of them, or too long
			}
			rest = rest[n:]
		}
		b, errB := pieces.end()
		if (errA == nil) != (errB == nil) {
			t.Fatalf("at once: %v; in pieces: %v", errA, errB)
		}
		if errA != nil {
			if FaultOf(errA) == "" {
				t.Fatalf("%v is nobody's fault", errA)
			}
			return
		}
		if !maps.Equal(a.pseudo, b.pseudo) || fmt.Sprint(a.malformed) != fmt.Sprint(b.malformed) {
			t.Fatalf("at once %v, %v; in pieces %v, %v", a.pseudo, a.malformed, b.pseudo, b.malformed)
		}
		if fault, _ := connectFault(a); fault != "" {
			return
		}
		total := len(a.pseudo["authority"])
		for name, values := range a.header {
			for _, v := range values {
				total += len(name) + len(v)
				if strings.ContainsAny(v, "\r\n\x00") {
					t.Fatalf("%s: %q", name, v)
				}
			}
		}
		if a.pseudo["method"] != http.MethodConnect || !isAuthority(a.pseudo["authority"]) || len(a.pseudo) != 2 || total > serverHeaderList {
			t.Fatalf("taken for a request: %v, headers of %d bytes", a.pseudo, total)
		}
	})
}
