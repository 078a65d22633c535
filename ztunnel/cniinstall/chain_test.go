package cniinstall

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

var entry = cniproto.ChainEntry{
	Type: cniproto.PluginType, Socket: "/run/ambit/cni.sock", EnrolmentFile: "/var/lib/ambit/enrolment.json",
	ExcludedNamespaces: []string{"ambit-system", "kube-system"},
}

const entryText = `{
      "type": "ambit-cni",
      "socket": "/run/ambit/cni.sock",
      "enrolmentFile": "/var/lib/ambit/enrolment.json",
      "excludedNamespaces": [
        "ambit-system",
        "kube-system"
      ]
    }`

// The white space, the order and the large number are other people's.
const chain = `{ "cniVersion":"1.0.0",
	"name": "net", "big": 12345678901234567890,
  "plugins": [
    {"type":"ptp", "mtu":1400.0 , "plugins":[{"type":"inner"}]},
    {"type":"portmap","capabilities":{"portMappings":true}}
  ], "after": {"plugins": []}
}
`

func TestEntryGoesInAndComesOutWithoutATrace(t *testing.T) {
	with, err := withEntry([]byte(chain), entry)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(chain, `"portMappings":true}}`, `"portMappings":true}},`+"\n    "+entryText, 1)
	if string(with) != want {
		t.Errorf("with the entry:\n%s\nwant\n%s", with, want)
	}
	again, err := withEntry(with, entry)
	if err != nil || string(again) != string(with) {
		t.Errorf("a second time changed it (%v):\n%s", err, again)
	}
	without, err := withoutEntry(with)
	if err != nil || string(without) != chain {
		t.Errorf("removed again (%v):\n%s\nwant\n%s", err, without, chain)
	}
}

func TestEntryIsCorrectedNotDoubled(t *testing.T) {
	old := entry
	old.Socket = "/run/elsewhere.sock"
	for name, others := range map[string]string{
		"outdated": mustWith(t, chain, old),
		"doubled":  strings.Replace(mustWith(t, chain, entry), entryText, entryText+",\n    "+entryText, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustWith(t, others, entry); got != mustWith(t, chain, entry) {
				t.Errorf("corrected:\n%s", got)
			}
		})
	}
}

func TestEntryThatOthersJoinedBehindStays(t *testing.T) {
	moved := strings.Replace(mustWith(t, chain, entry), entryText, entryText+`, {"type":"other"}`, 1)
	if got := mustWith(t, moved, entry); got != moved {
		t.Errorf("moved to the end:\n%s", got)
	}
}

func TestMalformedChains(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"empty":             {``, "unexpected end"},
		"torn":              {chain[:len(chain)/2], "unexpected end"},
		"trailing":          {chain + "}", "after top-level value"},
		"a list":            {`[]`, "cannot unmarshal"},
		"no name":           {`{"plugins":[{"type":"ptp"}]}`, `"name"`},
		"no plugins":        {`{"name":"net"}`, `"plugins"`},
		"empty plugins":     {`{"name":"net","plugins":[]}`, `"plugins"`},
		"plugins an object": {`{"name":"net","plugins":{}}`, "cannot unmarshal"},
		"plugin a string":   {`{"name":"net","plugins":["ptp"]}`, `"plugins[0]"`},
		"plugin untyped":    {`{"name":"net","plugins":[{"type":"ptp"},{}]}`, `"plugins[1].type"`},
		"only ours":         {`{"name":"net","plugins":[{"type":"ambit-cni"}]}`, "stands first"},
		"other case":        {`{"name":"net","Plugins":[{"type":"ptp"}]}`, "lower case"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := withEntry([]byte(c.content), entry); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q (result %q)", err, c.want, got)
			}
		})
	}
}

func mustWith(t *testing.T, content string, entry cniproto.ChainEntry) string {
	t.Helper()
	got, err := withEntry([]byte(content), entry)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}
