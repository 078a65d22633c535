package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, 100 on all
// architectures that this runs on.
const clockTick = time.Second / 100

// CPU is the user and system time that processes have used so far.
func CPU(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks, err := cpuTicks(string(b))
		if err != nil {
			return 0, fmt.Errorf("read CPU time of %d: %w", pid, err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}

// Fields of /proc/PID/stat in proc(5), counted from the third one on.
const (
	statState  = 3 - 3
	statGroup  = 5 - 3
	statUTime  = 14 - 3
	statSTime  = 15 - 3
	statFewest = statSTime + 1
)

// zombie is the state of a process that has ended and was not waited for.
const zombie = "Z"

// statFields are those after the second one, which is a name in brackets that
// may itself hold brackets and spaces.
func statFields(stat string) ([]string, error) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) < statFewest {
		return nil, fmt.Errorf("malformed stat %q", stat)
	}
	return fields, nil
}

// cpuTicks is utime + stime.
func cpuTicks(stat string) (ticks int64, err error) {
	fields, err := statFields(stat)
	if err != nil {
		return 0, err
	}
	for _, field := range fields[statUTime : statSTime+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks, nil
}

// Memory is the proportional set size of processes, in bytes: what they share
// is counted once.
func Memory(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("read memory: %w", err)
		}
		pss, err := parsePSS(string(b))
		if err != nil {
			return 0, fmt.Errorf("read memory of %d: %w", pid, err)
		}
		sum += pss
	}
	return sum, nil
}

// OpenFiles is how many files processes have open.
func OpenFiles(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, fmt.Errorf("read open files: %w", err)
		}
		sum += int64(len(open))
	}
	return sum, nil
}

// parsePSS reads smaps_rollup of proc(5).
func parsePSS(rollup string) (int64, error) {
	for line := range strings.Lines(rollup) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" && fields[2] == "kB" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no Pss in smaps_rollup")
}

// Pin lets all threads of processes run on these CPUs only. Threads that they
// start later inherit it.
func Pin(pids []int, cpus unix.CPUSet) error {
	for _, pid := range pids {
		// A thread may start another one while we look: what is pinned cannot
		// start one that is not, so looking again until nothing is new ends.
		for pinned := map[int]bool{}; ; {
			before := len(pinned)
			for _, thread := range threads(pid) {
				if pinned[thread] {
					continue
				}
				pinned[thread] = true
				if err := unix.SchedSetaffinity(thread, &cpus); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("pin thread %d of %d: %w", thread, pid, err)
				}
			}
			if len(pinned) == before {
				break
			}
		}
	}
	return nil
}

// CPUs are those that this process may use.
func CPUs() (unix.CPUSet, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return set, fmt.Errorf("read CPU affinity: %w", err)
	}
	return set, nil
}

// OneOf returns the last CPU of a set alone: the first one often has the
// machine's interrupts.
func OneOf(set unix.CPUSet) unix.CPUSet {
	var one unix.CPUSet
	for cpu := len(set)*64 - 1; cpu >= 0; cpu-- {
		if set.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	return one
}

// RaiseFileLimit lets this process and its children open as many files as may
// be, and returns how many that is.
func RaiseFileLimit() (uint64, error) {
	// wanted is for 10,000 connections through a proxy, and then some.
	const wanted = 1 << 20
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wanted, Max: wanted}); err == nil {
		return wanted, nil
	}
	var limit unix.Rlimit // without CAP_SYS_RESOURCE
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return limit.Max, nil
}
