package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/orders"
)

const (
	// askPause lies between two questions to one target.
	askPause = 100 * time.Millisecond
	// askPatience is for a new connection and its answer.
	askPatience = time.Second
	// keptPatience is for an answer over the connection that is kept: one that is
	// slow is not lost.
	keptPatience = 5 * time.Second
	// attackPause lies between two tries.
	attackPause = 100 * time.Millisecond
	ordersPoll  = 20 * time.Millisecond
)

// participant is an application of a trial of faults: it answers whoever asks, asks
// those that its orders name, and tells of every attempt.
type participant struct {
	namespace, pod string
	mu             sync.Mutex // guards tale
	tale           *json.Encoder
}

func servePeer(ctx context.Context) error {
	p := &participant{namespace: os.Getenv("POD_NAMESPACE"), pod: os.Getenv("POD_NAME")}
	path := orders.Tale(orders.Folder, p.namespace, p.pod)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tale, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer tale.Close()
	p.tale = json.NewEncoder(tale)

	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", orders.Port))
	if err != nil {
		return err
	}
	defer listener.Close()
	go accept(listener, p.answer)
	go p.obey(ctx)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	return serveHTTP(ctx, fmt.Sprintf(":%d", orders.HealthPort), mux)
}

func (p *participant) answer(conn net.Conn) {
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintf(conn, "%s: %s/%s answers\n", orders.Marker, p.namespace, p.pod); err != nil {
			return
		}
	}
}

// obey follows the orders until ctx ends. What did not change goes on.
func (p *participant) obey(ctx context.Context) {
	var (
		current  orders.Orders
		asking   = map[orders.Target]context.CancelFunc{}
		stopLast = func() {}
	)
	for ; ctx.Err() == nil; time.Sleep(ordersPoll) {
		next, err := orders.Read(orders.Folder, p.namespace, p.pod)
		if err != nil || reflect.DeepEqual(next, current) {
			continue // half of a disk that is lost: the last orders hold
		}
		wanted := map[orders.Target]bool{}
		for _, target := range next.Targets {
			wanted[target] = true
			if asking[target] == nil {
				asked, stop := context.WithCancel(ctx)
				asking[target] = stop
				go p.ask(asked, target)
				go p.keep(asked, target)
			}
		}
		for target, stop := range asking {
			if !wanted[target] {
				stop()
				delete(asking, target)
			}
		}
		if !reflect.DeepEqual(next.Attacks, current.Attacks) {
			stopLast()
			attacking, stop := context.WithCancel(ctx)
			stopLast = stop
			for _, attack := range next.Attacks {
				go p.attack(attacking, attack)
			}
		}
		current = next
	}
}

func (p *participant) tell(ctx context.Context, a orders.Attempt, err error) {
	if ctx.Err() != nil {
		return // called off: nobody's failure
	}
	a.Ended = time.Now()
	if err != nil {
		a.Failed = errno(err).Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tale.Encode(a)
}

// ask opens a connection for every question.
func (p *participant) ask(ctx context.Context, target orders.Target) {
	for every := time.NewTicker(askPause); ; {
		a := orders.Attempt{Began: time.Now(), Kind: orders.New, Target: target.Name}
		conn, err := (&net.Dialer{Timeout: askPatience}).DialContext(ctx, "tcp", target.Address)
		if err == nil {
			err = p.question(conn, bufio.NewReader(conn), askPatience)
			conn.Close()
		}
		p.tell(ctx, a, err)
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// keep asks over one connection for as long as it lives.
func (p *participant) keep(ctx context.Context, target orders.Target) {
	for ctx.Err() == nil {
		id := time.Now().UnixMicro()
		conn, err := (&net.Dialer{Timeout: keptPatience}).DialContext(ctx, "tcp", target.Address)
		if err != nil {
			time.Sleep(askPause)
			continue
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		for answers := bufio.NewReader(conn); err == nil; time.Sleep(askPause) {
			a := orders.Attempt{Began: time.Now(), Kind: orders.Kept, Target: target.Name, Conn: id}
			err = p.question(conn, answers, keptPatience)
			p.tell(ctx, a, err)
		}
		stop()
		conn.Close()
	}
}

func (p *participant) question(conn net.Conn, answers *bufio.Reader, patience time.Duration) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "%s: %s/%s asks\n", orders.Marker, p.namespace, p.pod); err != nil {
		return err
	}
	answer, err := answers.ReadString('\n')
	if err == nil && !strings.HasPrefix(answer, orders.Marker) {
		err = fmt.Errorf("answered with %q", answer)
	}
	return err
}

// attack tries until it is called off, at all addresses.
func (p *participant) attack(ctx context.Context, a orders.Attack) {
	run, known := attacks[a.Kind]
	for ; ctx.Err() == nil; time.Sleep(attackPause) {
		for _, address := range a.Addresses {
			attempt := orders.Attempt{Began: time.Now(), Kind: orders.Attacked, Target: address}
			err := fmt.Errorf("no attack %q", a.Kind)
			if known {
				err = run(address)
			}
			p.tell(ctx, attempt, err)
		}
	}
}
