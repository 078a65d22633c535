package simulated

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ports of a component's own servers.
const (
	adminPort     = 15000
	metricsPort   = 15020
	readinessPort = 15021
)

// get asks a server of the process, from within its pod.
func (p *Process) get(ctx context.Context, port uint16, path string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, // as little work for it as can be
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = p.pod.Do(func() (err error) {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	url := fmt.Sprintf("http://%s%s", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", p.pod.Name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", p.pod.Name, err)
	}
	return body, nil
}

// readyPoll is how exactly it is known when a process became ready.
const readyPoll = 10 * time.Millisecond

// WaitReady waits until the process says that it is ready. Should it end first,
// the error holds the end of its log.
func (p *Process) WaitReady(ctx context.Context) error {
	for {
		_, err := p.get(ctx, readinessPort, "/healthz/ready")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w\n%s", p.pod.Name, context.Cause(ctx), err, p.logEnd())
		case <-p.ended:
			return fmt.Errorf("%s ended: %s\n%s", p.pod.Name, p.command.ProcessState, p.logEnd())
		case <-time.After(readyPoll):
		}
	}
}

// logEndBytes are enough for the last lines.
const logEndBytes = 4 << 10

func (p *Process) logEnd() string {
	content, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-logEndBytes):])
}

// Metrics returns the process's metrics, each by its name and labels as in
// Prometheus' text format.
func (p *Process) Metrics(ctx context.Context) (map[string]float64, error) {
	body, err := p.get(ctx, metricsPort, "/metrics")
	if err != nil {
		return nil, err
	}
	metrics := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		name, text, ok := cutLast(strings.TrimSpace(line))
		if value, err := strconv.ParseFloat(text, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			metrics[name] = value
		}
	}
	return metrics, nil
}

func cutLast(line string) (before, after string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

// Profile returns one of the process's runtime profiles, by its name.
func (p *Process) Profile(ctx context.Context, name string) ([]byte, error) {
	return p.get(ctx, adminPort, "/debug/pprof/"+name)
}

// Dump reads a section of the process's configuration dump.
func (p *Process) Dump(ctx context.Context, section string, into any) error {
	body, err := p.get(ctx, adminPort, "/config_dump?section="+section)
	if err != nil {
		return err
	}
	var sections map[string]json.RawMessage
	if err := json.Unmarshal(body, &sections); err != nil {
		return fmt.Errorf("read dump of %s: %w", p.pod.Name, err)
	}
	if err := json.Unmarshal(sections[section], into); err != nil {
		return fmt.Errorf("read %s of %s: %w", section, p.pod.Name, err)
	}
	return nil
}

// Memory is what a process occupies, in bytes.
type Memory struct {
	// Resident is all that is in memory; Proportional shares what several
	// processes have mapped; Peak is the most that was ever resident.
	Resident, Proportional, Peak uint64
}

// Memory reads what the process occupies now.
func (p *Process) Memory() (Memory, error) {
	var m Memory
	for file, fields := range map[string]map[string]*uint64{
		"smaps_rollup": {"Rss:": &m.Resident, "Pss:": &m.Proportional},
		"status":       {"VmHWM:": &m.Peak},
	} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID(), file))
		if err != nil {
			return m, fmt.Errorf("read memory of %s: %w", p.pod.Name, err)
		}
		for line := range strings.Lines(string(content)) {
			words := strings.Fields(line)
			if len(words) < 2 || fields[words[0]] == nil {
				continue
			}
			kib, err := strconv.ParseUint(words[1], 10, 64)
			if err != nil {
				return m, fmt.Errorf("read memory of %s: %w", p.pod.Name, err)
			}
			*fields[words[0]] = kib << 10
		}
	}
	return m, nil
}
