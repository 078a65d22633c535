package dns

import (
	"bytes"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Whatever a pod or a resolver sends: what is answered is an answer to it, what fits fits, and what is learnt is the name's.
func FuzzMessages(f *testing.F) {
	q := ask(f, 7, "shop.example.", dnsmessage.TypeA, 1232)
	f.Add(q, reply(q, nil, a("shop.example.", "203.0.113.7", 30)))
	f.Add(q, reply(q, nil, cname("shop.example.", "cdn.example.", 30), a("cdn.example.", "2001:db8::7", 30)))
	f.Add(ask(f, 7, ".", typeAXFR, 0), []byte{0, 7, 0x80, 0, 0, 0})
	f.Add(append(bytes.Repeat([]byte{0xc0}, 12), 0xc0, 12, 0, 1, 0, 1), []byte{})
	f.Fuzz(func(t *testing.T, asked, answered []byte) {
		q, refused := readQuestion(asked)
		if refused != nil && refused.silent {
			return
		}
		if q.end < headerSize || q.end > len(asked) || q.size < minDatagram {
			t.Fatalf("question ends at %d of %d, takes %d", q.end, len(asked), q.size)
		}
		for _, own := range [][]byte{q.reply(dnsmessage.RCodeServerFailure), q.reply(dnsmessage.RCodeFormatError)} {
			if id(own) != id(asked) || flags(own)&bitAnswer == 0 || len(own) > len(asked) {
				t.Fatalf("%x answered by %x", asked, own)
			}
			if refused == nil && !q.answeredBy(own, id(asked)) {
				t.Fatalf("%x is no answer to %x", own, asked)
			}
		}
		if refused != nil {
			return
		}
		if q.answeredBy(answered, id(asked)) {
			if fitted := fit(q, answered); len(fitted) > q.size || id(fitted) != id(asked) {
				t.Fatalf("%d bytes for %d", len(fitted), q.size)
			}
		}
		if learnt, ok := readAnswer(answered); ok {
			if learnt.Name == "" || len(learnt.Addresses) == 0 {
				t.Fatalf("learnt %v", learnt)
			}
			for _, address := range learnt.Addresses {
				if !address.IP.IsValid() || address.IP.Is4In6() || address.TTL < 0 {
					t.Fatalf("learnt %v", address)
				}
			}
		}
	})
}
