// Package process runs programs in pods and reads what they cost.
//
//	process.go  Start, Stop, and the programs' own children
//	talk.go     those of ours that are asked for things while they run
//	cost.go     CPU time, memory, which CPUs they may use
//
// A program is a process group, with its children; Stop ends the group. What it writes goes to a file,
// whose end is part of the error when it ends by itself.
//
// It does not know what the programs do.
package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/topology"
)

const (
	// stopTimeout is how long a program may take to end in order.
	stopTimeout = 3 * time.Second
	// maxTail bounds how much of a program's log an error shows.
	maxTail = 2 << 10
	// roleVariable names the part of this program that a child runs as.
	roleVariable = "AMBIT_BENCH_ROLE"
)

// Role is the part that this process was started for; empty for the first one.
func Role() string { return os.Getenv(roleVariable) }

// Program is what to run.
type Program struct {
	// Args begin with the program's path.
	Args []string
	// Env is added to this process's own.
	Env []string
	// Log receives standard error, and standard output unless Talk.
	Log string
	// Talk gives the program pipes as standard input and output.
	Talk bool
}

// Self is this program in another role, with more environment ("NAME=value").
func Self(role string, env ...string) Program {
	return Program{Args: []string{"/proc/self/exe"}, Env: append(env, roleVariable+"="+role)}
}

// Place is where a program runs: a pod.
type Place interface {
	// Start starts a command, whose SysProcAttr it may add to.
	Start(*exec.Cmd) error
}

// In is a network namespace as a place.
func In(ns *topology.NetNS) Place { return namespace{ns} }

type namespace struct{ *topology.NetNS }

func (n namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Process is a running program.
type Process struct {
	// Fixed. Stdin and Stdout are set for a program that talks.
	Stdin  io.WriteCloser
	Stdout io.ReadCloser
	cmd    *exec.Cmd
	log    string

	stop  sync.Once
	ended chan struct{}
	err   error // once ended is closed
}

// Start runs a program.
func Start(place Place, p Program) (*Process, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Args[0], err)
	}
	defer log.Close()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	running := &Process{cmd: cmd, log: p.Log, ended: make(chan struct{})}
	if p.Talk {
		// Pipes of our own: those of exec are closed by Wait, with what was
		// not yet read in them.
		childIn, stdin, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", p.Args[0], err)
		}
		stdout, childOut, err := os.Pipe()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start %s: %w", p.Args[0], err), childIn.Close(), stdin.Close())
		}
		defer childIn.Close()
		defer childOut.Close()
		cmd.Stdin, cmd.Stdout = childIn, childOut
		running.Stdin, running.Stdout = stdin, stdout
	} else {
		cmd.Stdout = log
	}
	if err := place.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Args[0], err)
	}
	go func() {
		running.err = cmd.Wait()
		close(running.ended)
	}()
	return running, nil
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Tree is the process and its children, all generations: its process group.
func (p *Process) Tree() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has just ended
		}
		if fields, err := statFields(string(stat)); err == nil && fields[statGroup] == strconv.Itoa(p.Pid()) && fields[statState] != zombie {
			pids = append(pids, pid)
		}
	}
	return pids
}

// threads of a process; none once it has ended.
func threads(pid int) []int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// Alive returns nil while the program runs, and then why it does not.
func (p *Process) Alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %v: %s", p.cmd.Args[0], p.err, p.tail())
	default:
		return nil
	}
}

func (p *Process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-maxTail):]))
}

// Stop ends the program and its children. It is an error if it had ended before.
func (p *Process) Stop() error {
	var err error
	p.stop.Do(func() {
		err = p.Alive()
		group := -p.Pid()
		if p.Stdin != nil {
			p.Stdin.Close()
		}
		syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(stopTimeout):
		}
		syscall.Kill(group, syscall.SIGKILL) // what the first one has left behind
		<-p.ended
		for deadline := time.Now().Add(stopTimeout); len(p.Tree()) > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // its children are dying
		}
		if p.Stdout != nil {
			p.Stdout.Close()
		}
	})
	return err
}
