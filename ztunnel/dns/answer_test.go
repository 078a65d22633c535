package dns

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestAnswersAreOfTheNameThatWasAsked(t *testing.T) {
	address := func(ip string, seconds int) Address {
		return Address{netip.MustParseAddr(ip), time.Duration(seconds) * time.Second}
	}
	for name, test := range map[string]struct {
		records []dnsmessage.Resource
		change  func(*dnsmessage.Message)
		want    []Address
	}{
		"address":          {records: []dnsmessage.Resource{a("api.example.", "203.0.113.1", 60)}, want: []Address{address("203.0.113.1", 60)}},
		"IPv6":             {records: []dnsmessage.Resource{a("api.example.", "2001:db8::1", 60)}, want: []Address{address("2001:db8::1", 60)}},
		"mapped":           {records: []dnsmessage.Resource{a("api.example.", "::ffff:203.0.113.1", 60)}, want: []Address{address("203.0.113.1", 60)}},
		"case":             {records: []dnsmessage.Resource{a("API.EXAMPLE.", "203.0.113.1", 60)}, want: []Address{address("203.0.113.1", 60)}},
		"another name":     {records: []dnsmessage.Resource{a("evil.example.", "203.0.113.1", 60)}},
		"beside":           {records: []dnsmessage.Resource{a("api.example.", "203.0.113.1", 60), a("evil.example.", "203.0.113.2", 60)}, want: []Address{address("203.0.113.1", 60)}},
		"alias":            {records: []dnsmessage.Resource{cname("api.example.", "cdn.example.", 10), a("cdn.example.", "203.0.113.1", 60)}, want: []Address{address("203.0.113.1", 10)}},
		"alias after":      {records: []dnsmessage.Resource{a("cdn.example.", "203.0.113.1", 60), cname("api.example.", "cdn.example.", 90)}, want: []Address{address("203.0.113.1", 60)}},
		"alias elsewhere":  {records: []dnsmessage.Resource{cname("api.example.", "cdn.example.", 10), a("evil.example.", "203.0.113.1", 60)}},
		"chain":            {records: []dnsmessage.Resource{cname("api.example.", "b.example.", 10), cname("b.example.", "c.example.", 5), a("c.example.", "203.0.113.1", 60)}, want: []Address{address("203.0.113.1", 5)}},
		"circle":           {records: []dnsmessage.Resource{cname("api.example.", "b.example.", 10), cname("b.example.", "api.example.", 5)}},
		"alias of another": {records: []dnsmessage.Resource{cname("evil.example.", "api.example.", 10), a("evil.example.", "203.0.113.1", 60)}},
		"not found":        {records: []dnsmessage.Resource{a("api.example.", "203.0.113.1", 60)}, change: func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }},
		"truncated":        {records: []dnsmessage.Resource{a("api.example.", "203.0.113.1", 60)}, change: func(m *dnsmessage.Message) { m.Truncated = true }},
		"of another class": {records: []dnsmessage.Resource{a("api.example.", "203.0.113.1", 60)}, change: func(m *dnsmessage.Message) { m.Answers[0].Header.Class = dnsmessage.ClassCHAOS }},
		"in the additional": {change: func(m *dnsmessage.Message) {
			m.Additionals = append(m.Additionals, a("api.example.", "203.0.113.1", 60))
		}},
	} {
		m := reply(ask(t, 7, "Api.Example.", dnsmessage.TypeA, 0), test.change, test.records...)
		got, ok := readAnswer(m)
		if ok != (len(test.want) > 0) || ok && (got.Name != "api.example" || !reflect.DeepEqual(got.Addresses, test.want)) {
			t.Errorf("%s: %v, %v; want %v", name, got, ok, test.want)
		}
	}
}
