package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
	"github.com/ambit-mesh/ambit/ztunnel/rootonly"
)

const (
	// maxRequest is far above any request of the plugin.
	maxRequest = 64 << 10
	// requestTimeout is for a request to come, of a few hundred bytes.
	requestTimeout = 5 * time.Second
	// maxHeaders of a request: the plugin's have a few lines.
	maxHeaders = 16 << 10
	// serverGrace is what requests in flight get when the server stops.
	serverGrace = 2 * time.Second
)

// ServeCNI answers the CNI plugin on a unix socket until the context ends.
func (p *Pods) ServeCNI(ctx context.Context, path string) error {
	listener, err := rootonly.Listen(path, p.logger)
	if err != nil {
		return fmt.Errorf("serve CNI plugin: %w", err)
	}
	server := &http.Server{
		Handler:        p.cniRoutes(),
		ReadTimeout:    requestTimeout,
		WriteTimeout:   cniproto.AddTimeout + requestTimeout,
		MaxHeaderBytes: maxHeaders,
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	err = server.Serve(listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve CNI plugin: %w", err)
}

func (p *Pods) cniRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+cniproto.PathAdd, func(w http.ResponseWriter, r *http.Request) {
		var request cniproto.AddRequest
		if err := decode(r, &request); err != nil {
			answer(w, nil, err)
			return
		}
		// Shorter than the plugin's own, so that it hears the reason.
		ctx, cancel := context.WithTimeout(r.Context(), cniproto.AddTimeout-2*time.Second)
		defer cancel()
		began := time.Now()
		captured, err := p.admit(ctx, request)
		if err != nil {
			p.logger.Warn("pod held", "pod", request.Name, "namespace", request.Namespace, "uid", request.UID, "error", err)
		} else {
			p.logger.Info("pod let start", "pod", request.Name, "namespace", request.Namespace, "uid", request.UID, "captured", captured, "took", time.Since(began))
		}
		answer(w, cniproto.AddReply{Captured: captured}, err)
	})
	mux.HandleFunc("POST "+cniproto.PathCheck, func(w http.ResponseWriter, r *http.Request) {
		var request cniproto.AddRequest
		err := decode(r, &request)
		if err == nil {
			err = p.check(request)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("POST "+cniproto.PathDel, func(w http.ResponseWriter, r *http.Request) {
		var request cniproto.DelRequest
		err := decode(r, &request)
		if err == nil {
			p.sandboxEnded(request)
		}
		answer(w, struct{}{}, err)
	})
	return mux
}

func decode(r *http.Request, into any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(into); err != nil {
		return refuse(http.StatusBadRequest, "BadRequest", "decode request: %v", err)
	}
	return nil
}

func answer(w http.ResponseWriter, reply any, err error) {
	status := http.StatusOK
	if err != nil {
		r := asRefusal(err)
		status, reply = r.status, r.problem
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(reply) // the plugin is gone if this fails, and holds the pod
}

// cutReason splits a reason into its code and its sentence.
func cutReason(reason string) (code, sentence string, ok bool) {
	return strings.Cut(reason, ": ")
}
