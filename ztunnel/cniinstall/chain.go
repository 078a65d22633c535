package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// A conflist is other people's file: edits cut and insert bytes, and all the
// rest stays as it was written, down to its white space.

// plugin is where one element of a conflist's plugins stands in the file.
type plugin struct {
	start, end int64
	kind       string
	raw        json.RawMessage
}

// parseChain finds the plugins of a conflist. It demands what container
// runtimes demand, so that an edit never hides an error of the file's own.
func parseChain(content []byte) ([]plugin, error) {
	var head struct {
		Name    *string           `json:"name"`
		Plugins []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(content, &head); err != nil {
		return nil, err
	}
	if head.Name == nil || *head.Name == "" {
		return nil, errors.New(`field "name": missing`)
	}
	if len(head.Plugins) == 0 {
		return nil, errors.New(`field "plugins": missing or empty`)
	}
	plugins, err := locatePlugins(content)
	if err != nil {
		return nil, err
	}
	for i := range plugins {
		var element struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(plugins[i].raw, &element); err != nil {
			return nil, fmt.Errorf(`field "plugins[%d]": %w`, i, err)
		}
		if element.Type == "" {
			return nil, fmt.Errorf(`field "plugins[%d].type": missing`, i)
		}
		plugins[i].kind = element.Type
	}
	if plugins[0].kind == cniproto.PluginType {
		return nil, fmt.Errorf("%s stands first: nothing before it makes the pods' network", cniproto.PluginType)
	}
	return plugins, nil
}

// locatePlugins walks the top level of a valid JSON object.
func locatePlugins(content []byte) ([]plugin, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	if _, err := decoder.Token(); err != nil { // the opening brace
		return nil, err
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		if key != "plugins" {
			var skipped json.RawMessage
			if err := decoder.Decode(&skipped); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := decoder.Token(); err != nil { // the opening bracket
			return nil, err
		}
		var plugins []plugin
		for decoder.More() {
			var raw json.RawMessage
			if err := decoder.Decode(&raw); err != nil {
				return nil, err
			}
			end := decoder.InputOffset()
			plugins = append(plugins, plugin{start: end - int64(len(raw)), end: end, raw: raw})
		}
		return plugins, nil
	}
	// encoding/json matches names in any case, container runtimes' does too.
	return nil, errors.New(`field "plugins": not spelt in lower case`)
}

// withEntry returns the conflist with exactly one entry of ours that says what
// it should: the content itself if it is so already. An entry that others have
// moved stays where it is, or two chains' keepers would fight over the end.
func withEntry(content []byte, entry cniproto.ChainEntry) ([]byte, error) {
	plugins, err := parseChain(content)
	if err != nil {
		return nil, err
	}
	var ours []plugin
	for _, p := range plugins {
		if p.kind == cniproto.PluginType {
			ours = append(ours, p)
		}
	}
	if len(ours) == 1 && says(ours[0].raw, entry) {
		return content, nil
	}
	content, err = withoutEntry(content)
	if err != nil {
		return nil, err
	}
	if plugins, err = parseChain(content); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(entry, "    ", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode chain entry: %w", err)
	}
	end := plugins[len(plugins)-1].end
	edited := bytes.Clone(content[:end])
	edited = append(edited, ",\n    "...)
	edited = append(edited, text...)
	edited = append(edited, content[end:]...)
	if _, err := parseChain(edited); err != nil {
		return nil, fmt.Errorf("insert chain entry: %w", err)
	}
	return edited, nil
}

// withoutEntry returns the conflist without any entry of ours.
func withoutEntry(content []byte) ([]byte, error) {
	for {
		plugins, err := parseChain(content)
		if err != nil {
			return nil, err
		}
		at := -1
		for i, p := range plugins {
			if p.kind == cniproto.PluginType {
				at = i // never the first: parseChain refuses that
			}
		}
		if at < 0 {
			return content, nil
		}
		// From the end of the one before: that takes the comma and the white space between.
		content = append(bytes.Clone(content[:plugins[at-1].end]), content[plugins[at].end:]...)
	}
}

// says tells whether a chain entry in a file is the one wanted.
func says(raw json.RawMessage, entry cniproto.ChainEntry) bool {
	var there cniproto.ChainEntry
	if err := json.Unmarshal(raw, &there); err != nil {
		return false
	}
	a, errA := json.Marshal(there)
	b, errB := json.Marshal(entry)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// chainOf makes a conflist of a lone plugin's configuration and our entry.
func chainOf(conf []byte, entry cniproto.ChainEntry) ([]byte, error) {
	var head struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(conf, &head); err != nil {
		return nil, err
	}
	if head.Name == "" {
		return nil, errors.New(`field "name": missing`)
	}
	if head.Type == "" {
		return nil, errors.New(`field "type": missing`)
	}
	list, err := json.MarshalIndent(struct {
		CNIVersion string            `json:"cniVersion,omitempty"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}{head.CNIVersion, head.Name, []json.RawMessage{conf}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make a chain: %w", err)
	}
	return withEntry(append(list, '\n'), entry)
}
