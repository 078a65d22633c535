package dns

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// An Address is what a name stands for, as long as its records may be remembered.
type Address struct {
	IP  netip.Addr
	TTL time.Duration
}

// An Answer is the addresses of the name that was asked.
type Answer struct {
	// Name is in lower case, without the last dot.
	Name      string
	Addresses []Address
}

// readAnswer takes the addresses out of a complete answer of success. What belongs to the name that was asked is found by its
// chain of aliases alone; other records are nobody's. False: there are none, or the message cannot be read.
func readAnswer(m []byte) (Answer, bool) {
	var p dnsmessage.Parser
	header, err := p.Start(m)
	if err != nil || header.RCode != dnsmessage.RCodeSuccess || header.Truncated {
		return Answer{}, false
	}
	asked, err := p.Question()
	if err != nil || asked.Class != dnsmessage.ClassINET || p.SkipAllQuestions() != nil {
		return Answer{}, false
	}
	records, err := readRecords(&p)
	if err != nil {
		return Answer{}, false
	}
	a := Answer{Name: canonical(asked.Name)}
	owner, ttl := a.Name, time.Duration(1<<63-1)
	for range len(records.aliases) + 1 {
		for _, address := range records.addresses[owner] {
			address.TTL = min(address.TTL, ttl)
			a.Addresses = append(a.Addresses, address)
		}
		next, ok := records.aliases[owner]
		if !ok {
			break
		}
		delete(records.aliases, owner) // a circle ends
		owner, ttl = next.target, min(ttl, next.ttl)
	}
	return a, a.Name != "" && len(a.Addresses) > 0
}

type alias struct {
	target string
	ttl    time.Duration
}

// records of an answer, by whom they are of.
type records struct {
	aliases   map[string]alias
	addresses map[string][]Address
}

func readRecords(p *dnsmessage.Parser) (records, error) {
	r := records{map[string]alias{}, map[string][]Address{}}
	for {
		header, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		owner, ttl := canonical(header.Name), time.Duration(header.TTL)*time.Second
		if header.Class != dnsmessage.ClassINET {
			header.Type = dnsmessage.TypeALL // nothing of ours
		}
		switch header.Type {
		case dnsmessage.TypeA:
			a, err := p.AResource()
			if err != nil {
				return r, err
			}
			r.addresses[owner] = append(r.addresses[owner], Address{netip.AddrFrom4(a.A), ttl})
		case dnsmessage.TypeAAAA:
			a, err := p.AAAAResource()
			if err != nil {
				return r, err
			}
			r.addresses[owner] = append(r.addresses[owner], Address{netip.AddrFrom16(a.AAAA).Unmap(), ttl})
		case dnsmessage.TypeCNAME:
			c, err := p.CNAMEResource()
			if err != nil {
				return r, err
			}
			r.aliases[owner] = alias{canonical(c.CNAME), ttl}
		default:
			if err := p.SkipAnswer(); err != nil {
				return r, err
			}
		}
	}
}

// canonical is a name as policies have it.
func canonical(name dnsmessage.Name) string {
	return strings.ToLower(strings.TrimSuffix(name.String(), "."))
}
