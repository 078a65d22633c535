package testbed

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// wireNamespace holds the switch that joins the nodes: every packet between
// nodes passes its bridge.
const wireDevice = "br0"

func wireNamespace() string { return Machine{Name: "switch"}.Namespace() }

// Packet is one captured TCP segment.
type Packet struct {
	// Source and Destination are ADDRESS.PORT, as tcpdump prints them.
	Source, Destination string
	Flags               string
	// Text is the payload, printable bytes only.
	Text string
}

// Port is the destination's port.
func (p Packet) Port() string {
	return p.Destination[strings.LastIndex(p.Destination, ".")+1:]
}

// Opens tells whether the packet is the first of a connection.
func (p Packet) Opens() bool { return p.Flags == "S" }

// Capture records TCP between nodes while run runs.
func Capture(ctx context.Context, filter string, run func() error) ([]Packet, error) {
	file, err := os.CreateTemp("", "ambit-capture-*.pcap")
	if err != nil {
		return nil, err
	}
	file.Close()
	defer os.Remove(file.Name())
	// Without delay each packet takes as much of the buffer as the largest may: the usual 2 MiB are 8 packets.
	recorder := inWire(ctx, "tcpdump", "-i", wireDevice, "-n", "-s", "65535", "-B", "65536", "--immediate-mode", "-U", "-w", file.Name(), "tcp and ("+filter+")")
	if err := record(recorder, run); err != nil {
		return nil, err
	}
	printed, err := inWire(ctx, "tcpdump", "-r", file.Name(), "-n", "-A", "-t").Output()
	if err != nil {
		return nil, fmt.Errorf("read the capture: %w", err)
	}
	return packets(printed), nil
}

func inWire(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + wireNamespace(), "--"}, args...)...)
}

// record starts the recorder, waits until it listens, runs, and stops it.
func record(recorder *exec.Cmd, run func() error) error {
	said, err := recorder.StderrPipe()
	if err != nil {
		return err
	}
	if err := recorder.Start(); err != nil {
		return fmt.Errorf("start tcpdump: %w", err)
	}
	lines := bufio.NewReader(said)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			recorder.Wait()
			return fmt.Errorf("tcpdump ended before it listened: %s", line)
		}
		if strings.Contains(line, "listening on") {
			break
		}
	}
	failed := run()
	time.Sleep(300 * time.Millisecond) // what is on its way is part of it
	recorder.Process.Signal(syscall.SIGINT)
	io.Copy(io.Discard, lines)
	if err := recorder.Wait(); err != nil && failed == nil {
		failed = fmt.Errorf("stop tcpdump: %w", err)
	}
	return failed
}

var header = regexp.MustCompile(`^IP6? (\S+) > (\S+): Flags \[([^\]]*)\]`)

// packets parses what tcpdump -A -t prints.
func packets(printed []byte) []Packet {
	var all []Packet
	scanner := bufio.NewScanner(bytes.NewReader(printed))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		if m := header.FindStringSubmatch(line); m != nil {
			all = append(all, Packet{Source: m[1], Destination: m[2], Flags: m[3]})
		} else if len(all) > 0 {
			all[len(all)-1].Text += line + "\n"
		}
	}
	return all
}
