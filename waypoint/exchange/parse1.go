package exchange

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// parseRequest reads the head of a request; how its body is framed goes to w.
func parseRequest(head []byte, w *responder1) (*Request, error) {
	bad := func(what string) error { return fmt.Errorf("%s: %w", what, http1.ErrMalformed) }
	text := string(head[:len(head)-2]) // the fields' memory
	line, rest, _ := strings.Cut(text, "\r\n")
	method, line, _ := strings.Cut(line, " ")
	path, version, _ := strings.Cut(line, " ")
	if version != "HTTP/1.1" && version != "HTTP/1.0" {
		return nil, bad("version")
	}
	w.chunks = version == "HTTP/1.1"
	w.keep = w.keep && w.chunks
	w.head = method == "HEAD"
	r := &Request{Method: method, Scheme: "http", Path: path, Version: 1, Fields: make([]http1.Field, 0, strings.Count(rest, "\r\n"))}
	for rest != "" {
		line, rest, _ = strings.Cut(rest, "\r\n")
		f, err := http1.ParseField(line)
		if err != nil {
			return nil, err
		}
		r.Fields = append(r.Fields, f)
	}
	return r, r.frame(w)
}

// frame finds out what the connection's fields say.
func (r *Request) frame(w *responder1) error {
	bad := func(what string) error { return fmt.Errorf("%s: %w", what, http1.ErrMalformed) }
	var hosts, lengths, codings int
	var upgrade string
	wants := false
	for _, f := range r.Fields {
		switch f.Name {
		case "host":
			hosts++
			r.Authority = f.Value
		case "content-length":
			n, err := http1.ParseLength(f.Value)
			if err != nil {
				return bad("content-length")
			}
			lengths++
			r.length = n
		case "transfer-encoding":
			codings++
			if !strings.EqualFold(f.Value, "chunked") || !w.chunks {
				return bad("transfer-encoding")
			}
		case "connection":
			if http1.HasToken(f.Value, "close") {
				w.keep = false
			}
			wants = wants || http1.HasToken(f.Value, "upgrade")
		case "upgrade":
			upgrade = f.Value
		}
	}
	switch {
	case hosts != 1:
		return bad("host")
	case lengths > 1 || codings > 1 || lengths+codings > 1:
		return bad("content-length, transfer-encoding")
	case codings == 1:
		w.framing, r.length = http1.Chunked, -1
	case r.length > 0:
		w.framing = http1.Length
	}
	if wants && w.framing == http1.None && w.chunks && !strings.EqualFold(upgrade, "h2c") {
		r.Upgrade = upgrade
	}
	return r.see()
}
