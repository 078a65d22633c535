package fault

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// JumpClock makes a process believe that it is later by some time, from now on
// and until it ends. The machine's clock, and every other process, stay as they
// are.
//
// A Go program reads the clock by the function clock_gettime that the kernel
// maps into it (vdso(7)). That one is overwritten, in this process alone, by one
// that asks the kernel and adds the time to CLOCK_REALTIME; the monotonic
// clock goes on as before, as it does when an administrator or NTP sets the clock.
func JumpClock(pid int, by time.Duration) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("jump the clock of a process: written for amd64, this is %s", runtime.GOARCH)
	}
	address, err := clockGettime(pid)
	if err != nil {
		return fmt.Errorf("find the clock of process %d: %w", pid, err)
	}
	// Nobody is inside while it changes: a few instructions, and not run now.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open memory of process %d: %w", pid, err)
	}
	defer mem.Close()
	if _, err := mem.WriteAt(jumpedClock(by), address); err != nil {
		return fmt.Errorf("overwrite the clock of process %d: %w", pid, err)
	}
	return nil
}

// jumpedClock is int clock_gettime(clockid_t, struct timespec *) in machine code.
func jumpedClock(by time.Duration) []byte {
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x75, 0x13, // jnz end
		0x85, 0xff, // test edi, edi: CLOCK_REALTIME
		0x75, 0x0f, // jnz end
		0x48, 0xb8, // movabs rax, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(int64(by.Seconds())))
	return append(code,
		0x48, 0x01, 0x06, // add [rsi], rax
		0x31, 0xc0, // xor eax, eax
		0xc3, // end: ret
	)
}

// clockGettime is where a process has the function.
func clockGettime(pid int) (int64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	var from, to int64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				return 0, fmt.Errorf("read maps: %w", err)
			}
		}
	}
	if to == 0 {
		return 0, fmt.Errorf("it has no vdso")
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return 0, fmt.Errorf("read vdso: %w", err)
	}
	object, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("read vdso: %w", err)
	}
	symbols, err := object.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("read symbols of vdso: %w", err)
	}
	for _, symbol := range symbols {
		if symbol.Name == "__vdso_clock_gettime" {
			return from + int64(symbol.Value), nil
		}
	}
	return 0, fmt.Errorf("its vdso has no clock_gettime")
}
