package request_test

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// message2 is a request of HTTP/2 as it is on the wire, well-formed or not.
type message2 struct {
	fields   []http1.Field
	body     []byte
	trailers []http1.Field
}

// lines makes fields of lines, whose names end at their first colon but that at the
// beginning.
func lines(text string) (out []http1.Field) {
	for line := range strings.SplitSeq(text, "\n") {
		if i := strings.IndexByte(line[min(1, len(line)):], ':'); i >= 0 {
			out = append(out, http1.Field{Name: line[:i+1], Value: line[i+2:]})
		}
	}
	return out
}

func (m message2) write(w io.Writer) {
	io.WriteString(w, http2.ClientPreface)
	f := http2.NewFramer(w, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	head := func(fields []http1.Field, end bool) {
		block.Reset()
		for _, field := range fields {
			encoder.WriteField(hpack.HeaderField{Name: field.Name, Value: field.Value})
		}
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: end, EndHeaders: true})
	}
	head(m.fields, len(m.body)+len(m.trailers) == 0)
	if len(m.body) > 0 {
		f.WriteData(1, len(m.trailers) == 0, m.body)
	}
	if len(m.trailers) > 0 {
		head(m.trailers, true)
	}
}

// asked is what came of a request: nothing if it was refused.
func (m message2) asked(t *testing.T) (found *whole) {
	client, server := net.Pipe()
	defer client.Close()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	read := make(chan *whole, 1)
	go new(http2.Server).ServeConn(server, &http2.ServeConnOpts{
		BaseConfig: &http.Server{ErrorLog: log.New(io.Discard, "", 0)},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
			r, err := request.ReadHTTP2(in)
			if err != nil {
				return
			}
			one := &whole{Request: r}
			if one.body, err = io.ReadAll(in.Body); err != nil {
				return
			}
			switch {
			case in.ContentLength < 0:
				one.framing = http1.Chunked
			case in.ContentLength > 0:
				one.framing = http1.Length
			}
			one.trailers = request.FieldsOf(in.Trailer)
			read <- one
		}),
	})
	go m.write(client)
	f := http2.NewFramer(io.Discard, client)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Fatalf("nothing came of %q", m)
			}
			return nil
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame:
			return nil
		case *http2.HeadersFrame:
			select {
			case found = <-read:
			default:
			}
			return found
		case *http2.SettingsFrame:
			continue // whose acknowledgement nobody waits for so soon
		case *http2.GoAwayFrame:
			if frame.ErrCode != http2.ErrCodeNo {
				return nil
			}
		}
	}
}

// differs tells what was made of a request that it did not say; nil for nothing.
func (m message2) differs(w *whole) error {
	pseudo, fields := map[string]string{}, []http1.Field{}
	for _, f := range m.fields {
		if strings.HasPrefix(f.Name, ":") {
			pseudo[f.Name] = f.Value
		} else {
			fields = append(fields, f)
		}
	}
	for i := range fields {
		fields[i].Value = strings.Trim(fields[i].Value, " \t")
	}
	all := grouped(fields)
	for _, name := range []string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"} {
		if len(all[name]) > 0 {
			return fmt.Errorf("let pass %s", name)
		}
	}
	hosts := all["host"]
	if pseudo[":authority"] != "" {
		hosts = append(hosts, pseudo[":authority"])
	}
	for _, host := range hosts {
		if name, port, err := authority(host); err != nil || name != w.Host || port != w.Port {
			return fmt.Errorf("host %q of %q", w.Authority(), hosts)
		}
	}
	for _, length := range all["content-length"] {
		if n, err := http1.ParseLength(length); err != nil || n != int64(len(w.body)) {
			return fmt.Errorf("%d bytes of %q", len(w.body), all["content-length"])
		}
	}
	path, _, _ := strings.Cut(pseudo[":path"], "?")
	if i := strings.Index(path, "://"); i >= 0 {
		_, path, _ = strings.Cut(path[i+3:], "/")
		path = "/" + path
	}
	switch {
	case pseudo[":method"] != w.Method:
		return fmt.Errorf("method %q", w.Method)
	case plain(meaning(path)) != meaning(w.Path):
		return fmt.Errorf("path %q of %q", w.Path, pseudo[":path"])
	case !bytes.Equal(w.body, m.body):
		return fmt.Errorf("body %q", w.body)
	}
	ours := grouped(w.Fields)
	if cookies := all["cookie"]; len(cookies) > 1 {
		all["cookie"] = []string{strings.Join(cookies, "; ")} // RFC 9113 section 8.2.3
	}
	for _, name := range []string{"te", "host", "content-length", "http2-settings", "trailer", "expect"} { // of the connection, or the library has done what they ask for
		delete(all, name)
		delete(ours, name)
	}
	if !maps.EqualFunc(all, ours, slices.Equal) {
		return fmt.Errorf("fields %q of %q", ours, all)
	}
	return nil
}

const get2 = ":method:GET\n:scheme:http\n:authority:a\n:path:"

// What is no request of HTTP/2, or two of HTTP/1.1: RFC 9113 sections 8.1.1 to 8.3.1 and
// 10.3.
var refused2 = map[string]message2{
	"a line in a value":           {fields: lines(get2 + "/\nx:a\r\rb"), body: nil},
	"a colon in a name":           {fields: []http1.Field{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "a"}, {Name: ":path", Value: "/"}, {Name: "x: y\r\nhost", Value: "b"}}},
	"CRLF in a value":             {fields: append(lines(get2+"/"), http1.Field{Name: "x", Value: "y\r\nhost: b"})},
	"CRLF in the path":            {fields: append(lines(":method:GET\n:scheme:http\n:authority:a"), http1.Field{Name: ":path", Value: "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /admin"})},
	"CRLF in the method":          {fields: append(lines(":scheme:http\n:authority:a\n:path:/"), http1.Field{Name: ":method", Value: "GET / HTTP/1.1\r\nhost: b\r\n\r\nGET"})},
	"CRLF in the authority":       {fields: append(lines(":method:GET\n:scheme:http\n:path:/"), http1.Field{Name: ":authority", Value: "a\r\nx: y"})},
	"a space in the path":         {fields: lines(get2 + "/a HTTP/1.1")},
	"a fragment":                  {fields: lines(get2 + "/a#b")},
	"a control byte in the path":  {fields: lines(get2 + "/a\x01")},
	"another host in the path":    {fields: lines(get2 + "http://b/")},
	"no path":                     {fields: lines(get2)},
	"a relative path":             {fields: lines(get2 + "a")},
	"an upper-case name":          {fields: lines(get2 + "/\nX-A:b")},
	"transfer-encoding":           {fields: lines(get2 + "/\ntransfer-encoding:chunked"), body: []byte("0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n")},
	"connection":                  {fields: lines(get2 + "/\nconnection:x-role\nx-role:user")},
	"an upgrade":                  {fields: lines(get2 + "/\nupgrade:websocket")},
	"another host":                {fields: lines(get2 + "/\nhost:b")},
	"two hosts":                   {fields: lines(":method:GET\n:scheme:http\n:path:/\nhost:a\nhost:b")},
	"no host":                     {fields: lines(":method:GET\n:scheme:http\n:path:/")},
	"a user in the authority":     {fields: lines(":method:GET\n:scheme:http\n:authority:u@a\n:path:/")},
	"a longer body than it says":  {fields: lines(get2 + "/\ncontent-length:3"), body: []byte("GET /admin")},
	"a shorter body than it says": {fields: lines(get2 + "/\ncontent-length:30"), body: []byte("GET /admin")},
	"no body, and a length":       {fields: lines(get2 + "/\ncontent-length:3")},
	"two lengths":                 {fields: lines(get2 + "/\ncontent-length:3\ncontent-length:4"), body: []byte("abc")},
	"a length that is none":       {fields: lines(get2 + "/\ncontent-length:+3"), body: []byte("abc")},
	"lengths in a list":           {fields: lines(get2 + "/\ncontent-length:0, 0")},
	"CONNECT":                     {fields: lines(":method:CONNECT\n:authority:a:80")},
}

func TestMalformedHTTP2(t *testing.T) {
	for name, m := range refused2 {
		if w := m.asked(t); w != nil {
			t.Errorf("%s: read as %+v", name, *w)
		}
	}
	for _, m := range []message2{
		{fields: lines(get2 + "/a/../%62?c\nx-a:b\nx-a:c\ncookie:a\ncookie:b\ncontent-length:3"), body: []byte("abc")},
		{fields: lines(":method:OPTIONS\n:scheme:https\n:path:*\nhost:A.:80\nte:trailers")},
		{fields: lines(get2 + "/\nx-role: admin\nx-role:\tadmin \t\nempty:  ")},
		{fields: lines(get2 + "/\ntrailer:x-sum"), body: []byte("abc"), trailers: lines("x-sum: 3")},
	} {
		w := m.asked(t)
		if w == nil {
			t.Errorf("%q was refused", m)
			continue
		}
		if err := m.differs(w); err != nil {
			t.Errorf("%q: %v", m, err)
		}
		goesOn(t, *w)
	}
}

// FuzzHTTP2: what is read of HTTP/2 is what came, and goes on as one request of HTTP/1.1
// that net/http reads as the same.
func FuzzHTTP2(f *testing.F) {
	for _, m := range refused2 {
		var text []string
		for _, field := range m.fields {
			text = append(text, field.Name+":"+field.Value)
		}
		f.Add(strings.Join(text, "\n"), m.body, "")
	}
	f.Add(get2+"/a/../%62?c\nx-a:b\nx-a:c\ncookie:a\ncookie:b\nte:trailers\nexpect:100-continue", []byte("abc"), "")
	f.Add(get2+"/\ntrailer:x-sum, content-length", []byte("abc"), "x-sum:3\ncontent-length:4")
	f.Fuzz(func(t *testing.T, fields string, body []byte, trailers string) {
		m := message2{fields: lines(fields), body: body[:min(len(body), 4<<10)], trailers: lines(trailers)}
		w := m.asked(t)
		if w == nil {
			return
		}
		if err := m.differs(w); err != nil {
			t.Fatalf("%q: %v", m, err)
		}
		goesOn(t, *w)
	})
}
