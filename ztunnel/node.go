package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// redirectRetry is how soon a node that lacked something is looked at again.
const redirectRetry = 5 * time.Second

// node is the node's redirection, or why there is none yet. A node without it
// is reported, not crashed on: its pods wait, and say why.
type node struct {
	// Fixed after newNode.
	open   func() (*redirect.Redirect, error)
	logger *slog.Logger

	// Guarded by mu.
	mu       sync.Mutex
	redirect *redirect.Redirect
	problem  error
}

func newNode(open func() (*redirect.Redirect, error), logger *slog.Logger) *node {
	return &node{open: open, logger: logger, problem: &codedError{code: "Starting", text: "the node's redirection is not open yet"}}
}

// try opens the redirection, and tells whether it is open.
func (n *node) try() bool {
	if opened, _ := n.get(); opened != nil {
		return true
	}
	opened, err := n.open()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		problem := withCode(err, "RedirectFailed")
		if n.problem.Error() != problem.Error() {
			n.logger.Error("node cannot redirect", "code", problem.code, "error", problem)
		}
		n.problem = problem
		return false
	}
	n.redirect, n.problem = opened, nil
	n.logger.Info("node redirects", "adopted_pods", len(opened.Adopted()))
	return true
}

// run retries until the redirection is open, and then calls opened.
func (n *node) run(ctx context.Context, opened func()) {
	for !n.try() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(redirectRetry):
		}
	}
	opened()
}

func (n *node) get() (*redirect.Redirect, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.redirect, n.problem
}

// problems of the node, coded.
func (n *node) problems() []string {
	opened, err := n.get()
	if coded, ok := errors.AsType[*codedError](err); ok {
		return []string{coded.code + ": " + coded.text}
	}
	var all []string
	for _, problem := range opened.Problems() {
		coded := withCode(problem, string(problem.Code))
		all = append(all, coded.code+": "+coded.text)
	}
	return all
}

func (n *node) close() error {
	if opened, _ := n.get(); opened != nil {
		return opened.Close()
	}
	return nil
}

// codedError is what pods' states and the node's report show of an error.
type codedError struct {
	code, text string
	err        error
}

func (e *codedError) Error() string { return e.text }
func (e *codedError) Code() string  { return e.code }
func (e *codedError) Unwrap() error { return e.err }

// withCode finds the code of an error of the redirection.
func withCode(err error, otherwise string) *codedError {
	if problem, ok := errors.AsType[*redirect.Problem](err); ok {
		parts := []string{problem.Detail, problem.Fix}
		if problem.Err != nil {
			parts = []string{problem.Detail, "(" + problem.Err.Error() + ")", problem.Fix}
		}
		return &codedError{code: string(problem.Code), text: strings.Join(parts, " "), err: err}
	}
	if _, ok := errors.AsType[*redirect.AddressMismatch](err); ok {
		return &codedError{code: "AddressMismatch", text: err.Error(), err: err}
	}
	if _, ok := errors.AsType[*redirect.HostNamespace](err); ok {
		return &codedError{code: "HostNetNS", text: err.Error(), err: err}
	}
	return &codedError{code: otherwise, text: err.Error(), err: err}
}
