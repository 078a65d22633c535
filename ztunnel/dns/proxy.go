package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambit-mesh/ambit/internal/listen"
)

// Config of a Proxy.
type Config struct {
	// Datagrams and Streams bring the pod's questions.
	Datagrams Datagrams
	Streams   *net.TCPListener
	Resolver  *Resolver
	// Learn gets every answer of the node's resolvers that has addresses, before the pod does.
	Learn func(Answer)
	// Direct tells that a question is to go to the server that the pod addressed: of a pod that is itself one of the resolvers,
	// whose questions would come back to it. Nothing is learnt from the answer. An error: it may not go there, nor anywhere.
	Direct  func(server netip.AddrPort) (bool, error)
	Metrics *Metrics
	Logger  *slog.Logger
	// DrainTimeout is how long streams may live on after Run's context ended.
	DrainTimeout time.Duration
}

// Proxy answers what one pod asks.
type Proxy struct {
	cfg     Config
	streams *listen.Server
	// room is for questions that wait, or are in flight; slots is for the latter.
	room, slots chan struct{}
}

// New makes a Proxy; Run is to be called once.
func New(cfg Config) *Proxy {
	return &Proxy{cfg: cfg, streams: listen.New(cfg.Streams, maxStreams, cfg.Logger), room: make(chan struct{}, maxInFlight+maxWaiting), slots: make(chan struct{}, maxInFlight)}
}

// Run answers until ctx ends. An error means that one way to ask had to be given up before.
func (p *Proxy) Run(ctx context.Context) error {
	var datagrams, streams error
	var group sync.WaitGroup
	group.Go(func() { datagrams = p.readDatagrams(ctx) })
	group.Go(func() { streams = p.streams.Run(ctx, p.cfg.DrainTimeout, p.serveStream) })
	group.Wait()
	return errors.Join(datagrams, streams)
}

// StopAccepting leaves new streams to whoever listens next.
func (p *Proxy) StopAccepting() { p.streams.StopAccepting() }

// Cut ends all streams now.
func (p *Proxy) Cut() { p.streams.Cut() }

// readDatagrams answers until ctx ends: what is not answered by then is asked again, of whoever answers next.
func (p *Proxy) readDatagrams(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer context.AfterFunc(ctx, func() { p.cfg.Datagrams.Close() })()
	b := make([]byte, maxQuestion+1)
	for {
		n, client, server, err := p.cfg.Datagrams.Read(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		m := append([]byte(nil), b[:min(n, maxQuestion)]...)
		send := func(answer []byte) {
			if err := p.cfg.Datagrams.Write(answer, client, server); err != nil {
				p.cfg.Logger.Debug("DNS answer not sent", "error", err)
			}
		}
		q, refused := readQuestion(m)
		if refused == nil && n > maxQuestion {
			refused = errTooBig
		}
		if refused == nil && !p.enter() {
			refused = errOverloaded
		}
		if refused != nil {
			p.refuse(q, refused, "udp", send)
			continue
		}
		group.Go(func() {
			defer p.leave()
			if answer := p.answer(ctx, q, server, false); ctx.Err() == nil {
				send(fit(q, answer))
			}
		})
	}
}

// fit makes an answer one that the client takes by UDP.
func fit(q question, answer []byte) []byte {
	if len(answer) > q.size {
		return q.truncated(answer)
	}
	return answer
}

func (p *Proxy) enter() bool {
	select {
	case p.room <- struct{}{}:
		p.cfg.Metrics.inFlight.Inc()
		return true
	default:
		return false
	}
}

func (p *Proxy) leave() {
	p.cfg.Metrics.inFlight.Dec()
	<-p.room
}

// refuse answers what is not passed on.
func (p *Proxy) refuse(q question, r *refusal, transport string, send func([]byte)) {
	result := "malformed"
	switch {
	case r.silent:
		result = "dropped"
	case r == errOverloaded:
		result = "overloaded"
	case r.rcode == dnsmessage.RCodeRefused || r.rcode == dnsmessage.RCodeNotImplemented:
		result = "refused"
	}
	p.cfg.Metrics.questions.WithLabelValues(transport, result).Inc()
	if !r.silent {
		send(q.reply(r.rcode))
	}
}

// answer is the resolvers' answer, or ours that there is none.
func (p *Proxy) answer(ctx context.Context, q question, server netip.AddrPort, stream bool) []byte {
	began := time.Now()
	transport := "udp"
	if stream {
		transport = "tcp"
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, direct, err := p.resolve(ctx, q, server, stream)
	if err != nil {
		result := "no_answer"
		if errors.Is(err, errOverloaded) {
			result = "overloaded"
		}
		p.cfg.Metrics.questions.WithLabelValues(transport, result).Inc()
		p.cfg.Logger.Debug("DNS question not answered", "error", err)
		return q.reply(dnsmessage.RCodeServerFailure)
	}
	if !direct {
		if learnt, ok := readAnswer(answer); ok {
			p.cfg.Learn(learnt)
		}
	}
	p.cfg.Metrics.questions.WithLabelValues(transport, "answered").Inc()
	p.cfg.Metrics.seconds.Observe(time.Since(began).Seconds())
	return answer
}

// resolve asks, once fewer than maxInFlight others are in flight. direct: it asked the server that the pod addressed.
func (p *Proxy) resolve(ctx context.Context, q question, server netip.AddrPort, stream bool) (answer []byte, direct bool, err error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, false, errOverloaded
	}
	servers := p.cfg.Resolver.Servers()
	if direct, err = p.cfg.Direct(server); err != nil {
		return nil, false, err
	} else if direct {
		servers = []netip.AddrPort{server}
	}
	answer, err = p.cfg.Resolver.resolve(ctx, q, servers, stream)
	return answer, direct, err
}
