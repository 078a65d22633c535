package request

import (
	"strings"
	"unicode/utf8"
)

const upperHex = "0123456789ABCDEF"

// Path is the normal form of a path, as the package says, without its query.
func Path(path string) (string, error) {
	if path == "" || path[0] != '/' {
		return "", bad("path: does not begin with /")
	}
	if isPlain(path) {
		return path, nil
	}
	decoded, err := unescape(path)
	if err != nil {
		return "", err
	}
	return removeDots(decoded)
}

// Plain is what a path in its normal form stands for: what endpoints make of it that decode
// it. As there are no encoded separators, the segments stay what they are.
func Plain(path string) string {
	if strings.IndexByte(path, '%') < 0 {
		return path
	}
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if b, ok := hexByte(path[i+1:]); c == '%' && ok {
			c = b
			i += 2
		}
		out = append(out, c)
	}
	return string(out)
}

// isPlain tells that nothing is to be done: most paths are so.
func isPlain(path string) bool {
	for i := range len(path) {
		c := path[i]
		switch {
		case c == '/':
			if i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
				return false
			}
		case !isPathChar(c):
			return false
		}
	}
	return true
}

// isUnreserved: RFC 3986 section 2.3.
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// isPathChar: those of RFC 3986 section 3.3 that stand for themselves, but ';'.
func isPathChar(c byte) bool {
	return isUnreserved(c) || strings.IndexByte("!$&'()*+,=:@", c) >= 0
}

// unescape brings the encodings of a path into their one form.
func unescape(path string) (string, error) {
	out := make([]byte, 0, len(path)+8)
	meant := make([]byte, 0, len(path)) // what it stands for
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '/' || isPathChar(c):
			out, meant = append(out, c), append(meant, c)
		case strings.IndexByte("^`{|}", c) >= 0:
			out, meant = append(out, '%', upperHex[c>>4], upperHex[c&15]), append(meant, c)
		case c == '%':
			b, ok := hexByte(path[i+1:])
			switch {
			case !ok:
				return "", bad("path: % without two hexadecimal digits")
			case b < ' ' || b == 0x7f:
				return "", bad("path: an encoded control character")
			case b == '/' || b == '\\':
				return "", bad("path: an encoded separator")
			case isUnreserved(b):
				out = append(out, b)
			default:
				out = append(out, '%', upperHex[b>>4], upperHex[b&15])
			}
			meant = append(meant, b)
			i += 2
		default:
			return "", bad("path: a character that is none of a path")
		}
	}
	if !utf8.Valid(meant) {
		return "", bad("path: not UTF-8")
	}
	for i, c := range meant {
		if _, again := hexByte(string(meant[i+1 : min(len(meant), i+3)])); c == '%' && again {
			return "", bad("path: encoded twice")
		}
	}
	return string(out), nil
}

// hexByte reads the two digits that s begins with.
func hexByte(s string) (byte, bool) {
	if len(s) < 2 {
		return 0, false
	}
	high, low := hexDigit(s[0]), hexDigit(s[1])
	return high<<4 | low, high < 16 && low < 16
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// removeDots resolves the segments . and .., and leaves no segment empty but the last.
func removeDots(path string) (string, error) {
	out := make([]byte, 0, len(path))
	for rest := path[1:]; ; {
		segment, after, more := strings.Cut(rest, "/")
		switch segment {
		case "..":
			if len(out) == 0 {
				return "", bad("path: leaves its root")
			}
			out = out[:strings.LastIndexByte(string(out), '/')]
		case ".", "":
		default:
			out = append(append(out, '/'), segment...)
		}
		if !more {
			if segment == "" || segment == "." || segment == ".." {
				out = append(out, '/')
			}
			return string(out), nil
		}
		rest = after
	}
}
