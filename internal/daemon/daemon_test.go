package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func env(pairs map[string]string) func(string) string {
	return func(key string) string { return pairs[key] }
}

func TestLoggerFollowsTheEnvironment(t *testing.T) {
	var out strings.Builder
	logger, level, err := Logger(&out, env(map[string]string{"LOG_FORMAT": "json", "LOG_LEVEL": "warn"}))
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("hidden")
	level.Set(slog.LevelInfo)
	logger.Info("shown", "count", 3)
	var line struct {
		Msg   string
		Count int
	}
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line.Msg != "shown" || line.Count != 3 {
		t.Errorf("logged %q (%v)", out.String(), err)
	}
}

func TestLoggerNamesTheVariableThatIsWrong(t *testing.T) {
	for key, value := range map[string]string{"LOG_FORMAT": "xml", "LOG_LEVEL": "loud"} {
		_, _, err := Logger(io.Discard, env(map[string]string{key: value}))
		if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
}

func TestTheFirstSignalDrainsTheSecondForces(t *testing.T) {
	run, force, stop := SignalContext(context.Background())
	defer stop()
	raise := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	raise()
	<-run.Done()
	if force.Err() != nil {
		t.Fatal("the first signal forced")
	}
	raise()
	<-force.Done()
}

func TestAdminStaysOnLoopback(t *testing.T) {
	for _, address := range []string{":15000", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "nonsense"} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := NewAdmin(slog.Default(), new(slog.LevelVar)).Run(ctx, address)
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it served on %s", address)
		}
		cancel()
	}
}

func TestAdminShowsSectionsAndSetsTheLevel(t *testing.T) {
	level := new(slog.LevelVar)
	admin := NewAdmin(slog.New(slog.DiscardHandler), level)
	admin.Dump("pods", func() any { return []string{"web"} })
	answer := func(method, target string) (int, string) {
		w := httptest.NewRecorder()
		admin.mux.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		return w.Code, w.Body.String()
	}
	if code, body := answer("GET", "/config_dump"); code != 200 || !strings.Contains(body, `"pods"`) || !strings.Contains(body, `"web"`) {
		t.Errorf("the dump: %d %s", code, body)
	}
	if code, body := answer("GET", "/config_dump?section=cats"); code != 404 || !strings.Contains(body, "pods") {
		t.Errorf("an unknown section: %d %s", code, body)
	}
	if code, _ := answer("POST", "/logging?level=debug"); code != 200 || level.Level() != slog.LevelDebug {
		t.Errorf("setting the level: %d, level %s", code, level.Level())
	}
	if code, _ := answer("POST", "/logging?level=loud"); code != 400 || level.Level() != slog.LevelDebug {
		t.Errorf("setting a level that is none: %d, level %s", code, level.Level())
	}
}

// free returns a loopback address that nothing listens on.
func free(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		response, err := http.Get(url)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	readiness := NewReadiness()
	openFirst, openSecond := readiness.Gate("configuration"), readiness.Gate("redirection")
	ctx, cancel := context.WithCancel(context.Background())
	address, ended := free(t), make(chan error)
	go func() { ended <- readiness.Run(ctx, address) }()

	if code, body := get(t, "http://"+address+"/healthz/ready"); code != 503 || !strings.Contains(body, "configuration, redirection") {
		t.Errorf("both closed: %d %s", code, body)
	}
	openFirst()
	if code, body := get(t, "http://"+address+"/healthz/ready"); code != 503 || strings.Contains(body, "configuration") {
		t.Errorf("one closed: %d %s", code, body)
	}
	openSecond()
	if code, _ := get(t, "http://"+address+"/healthz/ready"); code != 200 {
		t.Errorf("all open: %d", code)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestMetricsTellTheVersion(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	address, ended := free(t), make(chan error)
	go func() { ended <- NewMetrics().Run(ctx, address) }()
	if code, body := get(t, "http://"+address+"/metrics"); code != 200 || !strings.Contains(body, `ambit_build_info{version="dev"} 1`) || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %d %s", code, body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// TestOneClientDoesNotTakeTheServer: who opens connections and says nothing gets
// so many, and others, the kubelet first of all, are answered.
func TestOneClientDoesNotTakeTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	address, ended := free(t), make(chan error)
	go func() { ended <- NewReadiness().Run(ctx, address) }()
	get(t, "http://"+address+"/healthz/ready")
	slow := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}}
	refused := 0
	for range 2 * connectionsPerAddress {
		conn, err := slow.Dial("tcp", address)
		if err != nil {
			refused++
			continue
		}
		defer conn.Close()
		io.WriteString(conn, "GET /healthz/ready HTTP/1.1\r\nX: ")
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			refused++
		}
	}
	if refused != connectionsPerAddress {
		t.Errorf("%d connections of one client were refused, want %d", refused, connectionsPerAddress)
	}
	if code, _ := get(t, "http://"+address+"/healthz/ready"); code != 200 {
		t.Errorf("another client: %d", code)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestHeadersAreBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	address, ended := free(t), make(chan error)
	go func() { ended <- NewReadiness().Run(ctx, address) }()
	get(t, "http://"+address+"/healthz/ready")
	request, err := http.NewRequest("GET", "http://"+address+"/healthz/ready", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X", strings.Repeat("x", 64<<10))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered %s", response.Status)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
