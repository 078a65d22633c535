package http1

import "strings"

// OfConnection tells of fields that are about one connection, RFC 9110 section 7.6.1, or
// about how a message is framed in it. Neither policies nor routes see them.
func OfConnection(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "content-length", "host", "http2-settings":
		return true
	}
	return false
}

// EndToEnd removes what is about the connection, and what its field Connection names; te
// stays where it says that trailers are understood. It reuses the memory of fields.
func EndToEnd(fields []Field) []Field {
	var named []string
	for _, f := range fields {
		if f.Name == "connection" {
			for name := range strings.SplitSeq(f.Value, ",") {
				named = append(named, strings.ToLower(strings.Trim(name, " \t")))
			}
		}
	}
	kept := fields[:0]
next:
	for _, f := range fields {
		if f.Name == "te" && HasToken(f.Value, "trailers") {
			kept = append(kept, Field{Name: "te", Value: "trailers"})
			continue
		}
		if OfConnection(f.Name) {
			continue
		}
		for _, name := range named {
			if f.Name == name {
				continue next
			}
		}
		kept = append(kept, f)
	}
	return kept
}

// beforeBody tells of fields that would change what was read before them if they came
// after the body: RFC 9110 section 6.5.1.
func beforeBody(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "host", "connection", "te", "trailer", "upgrade", "authorization", "content-encoding", "content-type", "content-range":
		return true
	}
	return false
}

// announcesFraming tells whether a field Trailer has such among what it announces by which
// messages are framed: some take that for malformed.
func announcesFraming(trailer string) bool {
	return HasToken(trailer, "content-length") || HasToken(trailer, "transfer-encoding") || HasToken(trailer, "trailer")
}
