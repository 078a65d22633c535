package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// client is a pod that opens connections.
type client struct {
	command *exec.Cmd
	stdin   io.Closer
	said    *bufio.Reader
}

func startClient(ctx context.Context, bed *testbed.Bed, from, to string, rate int) (*client, error) {
	command := bed.Command(ctx, "kubectl", "-n", namespace, "exec", "-i", from, "--", "/usr/local/bin/shop", "tool", "rate", fmt.Sprintf("-per-second=%d", rate), to)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	said, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the client %s: %w", from, err)
	}
	c := &client{command, stdin, bufio.NewReader(said)}
	if line, err := c.said.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("the client %s said %q", from, line), err, stdin.Close(), command.Wait())
	}
	return c, nil
}

// stop has the client tell what became of its connections.
func (c *client) stop(row *rotation) error {
	var seen struct {
		Opened, Failed int
		Examples       []string
		Slowest        time.Duration
		Standing       string
	}
	told := errors.Join(c.stdin.Close(), json.NewDecoder(c.said).Decode(&seen))
	if err := errors.Join(told, c.command.Wait()); err != nil {
		return fmt.Errorf("a client: %w", err)
	}
	row.Opened += seen.Opened
	row.Failed += seen.Failed
	row.Examples = append(row.Examples, seen.Examples...)
	row.SlowestMS = max(row.SlowestMS, seen.Slowest.Milliseconds())
	row.Standing++
	if seen.Standing != "" {
		row.StandingLost++
		row.Examples = append(row.Examples, "standing: "+seen.Standing)
	}
	return nil
}
