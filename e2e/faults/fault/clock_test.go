package fault

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain is also the process whose clock jumps: it tells the time for every
// line that it reads.
func TestMain(m *testing.M) {
	if os.Getenv("TELL_TIME") == "" {
		os.Exit(m.Run())
	}
	began := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(began)))
	}
}

func TestTheClockOfOneProcessJumps(t *testing.T) {
	clock := exec.Command(os.Args[0])
	clock.Env = append(os.Environ(), "TELL_TIME=1")
	questions, err := clock.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := clock.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := clock.Start(); err != nil {
		t.Fatal(err)
	}
	defer clock.Wait()
	defer questions.Close()
	tells := func() (ahead, age time.Duration) {
		t.Helper()
		fmt.Fprintln(questions)
		var wall int64
		if _, err := fmt.Fscan(answers, &wall, &age); err != nil {
			t.Fatal(err)
		}
		return time.Until(time.Unix(0, wall)).Round(time.Minute), age
	}
	if ahead, _ := tells(); ahead != 0 {
		t.Fatalf("at first it is %v ahead", ahead)
	}
	for _, by := range []time.Duration{25 * time.Hour, -time.Hour, 0} {
		if err := JumpClock(clock.Process.Pid, by); err != nil {
			t.Fatal(err)
		}
		if ahead, age := tells(); ahead != by || age < 0 || age > time.Minute {
			t.Errorf("after a jump by %v it is %v ahead, and believes that it has run for %v", by, ahead, age)
		}
	}
}
