package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// agentStage is a machine's service manager, the child of its PID 1.
func agentStage(args []string) error {
	b, err := decodeBoot(args)
	if err != nil {
		return err
	}
	m, err := findMachine(b.Machine)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a := &agent{machine: m, log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
	defer a.services.Wait()
	a.log.Info("machine started", "machine", m.name)
	if m.isNode() {
		return a.runNode(ctx)
	}
	return a.runControlPlane(ctx)
}

// agent runs the services of one machine.
type agent struct {
	machine  machine
	log      *slog.Logger
	services sync.WaitGroup
}

// restartDelay is what a crashed service waits, so that it cannot eat a core.
const restartDelay = time.Second

// service is one daemon of a machine.
type service struct {
	name   string // also of its log, /var/log/NAME.log
	cgroup string // below the machine's
	args   []string
}

// start runs a service, again whenever it ends, until ctx does.
func (a *agent) start(ctx context.Context, s service) error {
	if err := makeCgroup(s.cgroup); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(machineLogs, s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", s.name, err)
	}
	a.services.Go(func() {
		defer log.Close()
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"_join", s.cgroup}, s.args...)...)
			cmd.Stdout, cmd.Stderr = log, log
			began := time.Now()
			err := cmd.Run()
			a.log.Warn("service ended", "service", s.name, "after", time.Since(began), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(restartDelay):
			}
		}
	})
	return nil
}

// apiPollInterval is how often a machine asks for the API server.
const apiPollInterval = 200 * time.Millisecond

// waitForAPI returns once the API server serves, with its roles in place,
// however long the control plane is off. Components that meet it half started
// end, or back off for seconds.
func (a *agent) waitForAPI(ctx context.Context, credentials string) error {
	api, err := newAPI(apiServer(), machineConfig, credentials)
	if err != nil {
		return err
	}
	for !api.ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(apiPollInterval):
		}
	}
	a.log.Info("API server answers")
	return nil
}
