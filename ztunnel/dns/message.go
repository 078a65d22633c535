package dns

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/net/dns/dnsmessage"
)

// A question is a message that asks, as far as it is looked at.
type question struct {
	message []byte
	// end is where the question section ends.
	end int
	// size is what the client takes by UDP (RFC 6891 section 6.2.3).
	size int
}

// A refusal is why a message is not passed on: with an answer of ours, or, where there is nobody to answer, without.
type refusal struct {
	rcode  dnsmessage.RCode
	silent bool
	why    string
}

func (r *refusal) Error() string { return r.why }

var (
	errTooShort   = &refusal{silent: true, why: "no header"}
	errIsAnswer   = &refusal{silent: true, why: "an answer, not a question"}
	errOpcode     = &refusal{rcode: dnsmessage.RCodeNotImplemented, why: "not a standard query"}
	errFormat     = &refusal{rcode: dnsmessage.RCodeFormatError, why: "malformed"}
	errTransfer   = &refusal{rcode: dnsmessage.RCodeRefused, why: "a zone transfer"}
	errTooBig     = &refusal{rcode: dnsmessage.RCodeFormatError, why: "too long"}
	errOverloaded = &refusal{rcode: dnsmessage.RCodeServerFailure, why: "too many questions in flight"}
)

// Bits of the second word of the header (RFC 1035 section 4.1.1).
const (
	bitAnswer    = 1 << 15
	bitsOpcode   = 0xf << 11
	bitTruncated = 1 << 9
	bitDesired   = 1 << 8
	bitAvailable = 1 << 7
	bitChecking  = 1 << 4 // RFC 4035 section 3.2.2
	bitsRCode    = 0xf
)

func id(m []byte) uint16    { return binary.BigEndian.Uint16(m) }
func flags(m []byte) uint16 { return binary.BigEndian.Uint16(m[2:]) }
func rcode(m []byte) dnsmessage.RCode {
	return dnsmessage.RCode(flags(m) & bitsRCode)
}

// setID writes into m, which is the caller's.
func setID(m []byte, id uint16) { binary.BigEndian.PutUint16(m, id) }

// readQuestion takes apart what a client sent.
func readQuestion(m []byte) (question, *refusal) {
	q := question{message: m, end: headerSize, size: minDatagram}
	switch {
	case len(m) < headerSize:
		return q, errTooShort
	case flags(m)&bitAnswer != 0:
		return q, errIsAnswer
	case flags(m)&bitsOpcode != opcodeStandard<<11:
		return q, errOpcode
	case binary.BigEndian.Uint16(m[4:]) != 1:
		return q, errFormat
	}
	end, ok := questionEnd(m)
	if !ok {
		return q, errFormat
	}
	q.end = end
	if t := dnsmessage.Type(binary.BigEndian.Uint16(m[end-4:])); t == typeAXFR || t == typeIXFR {
		return q, errTransfer
	}
	size, err := datagramSize(m)
	if err != nil {
		return q, errFormat
	}
	q.size = size
	return q, nil
}

// questionEnd finds where the first question ends. Its name is not compressed: there is nothing before it to point to.
func questionEnd(m []byte) (int, bool) {
	at := headerSize
	for {
		if at >= len(m) {
			return 0, false
		}
		label := int(m[at])
		at++
		if label == 0 {
			break
		}
		if label > maxLabel {
			return 0, false
		}
		at += label
	}
	const typeAndClass = 4
	end := at + typeAndClass
	return end, end <= len(m) && at-headerSize <= maxName
}

// datagramSize is what the client's OPT record says that it takes. A message whose records cannot be read is an error.
func datagramSize(m []byte) (int, error) {
	size := minDatagram
	var p dnsmessage.Parser
	if _, err := p.Start(m); err != nil {
		return 0, err
	}
	if err := errors.Join(p.SkipAllQuestions(), p.SkipAllAnswers(), p.SkipAllAuthorities()); err != nil {
		return 0, err
	}
	for {
		header, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
		if header.Type == dnsmessage.TypeOPT {
			size = max(size, int(header.Class))
		}
		if err := p.SkipAdditional(); err != nil {
			return 0, err
		}
	}
}

// section is the question as it is written, its name included.
func (q question) section() []byte { return q.message[headerSize:q.end] }

// answers tells whether m is an answer to q, if q bore the identifier want. Names are compared regardless of case (RFC 4343).
func (q question) answeredBy(m []byte, want uint16) bool {
	if len(m) < headerSize || id(m) != want || flags(m)&bitAnswer == 0 || flags(m)&bitsOpcode != opcodeStandard<<11 {
		return false
	}
	if binary.BigEndian.Uint16(m[4:]) == 0 {
		// Servers that could not make sense of a question do not repeat it.
		return rcode(m) != dnsmessage.RCodeSuccess && rcode(m) != dnsmessage.RCodeNameError
	}
	end, ok := questionEnd(m)
	return ok && binary.BigEndian.Uint16(m[4:]) == 1 && bytes.EqualFold(m[headerSize:end], q.section())
}

// reply is an answer of ours: the question and a code.
func (q question) reply(code dnsmessage.RCode) []byte {
	kept := flags(q.message) & (bitsOpcode | bitDesired | bitChecking)
	m := make([]byte, headerSize, q.end)
	setID(m, id(q.message))
	binary.BigEndian.PutUint16(m[2:], bitAnswer|kept|bitAvailable|uint16(code))
	if q.end > headerSize {
		m[5] = 1
		m = append(m, q.section()...)
	}
	return m
}

// truncated is what is told of an answer that does not fit: to ask again by TCP (RFC 2181 section 9).
func (q question) truncated(answer []byte) []byte {
	m := q.reply(rcode(answer))
	binary.BigEndian.PutUint16(m[2:], flags(answer)|bitTruncated)
	return m
}
