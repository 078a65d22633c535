package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// reply is how an answer comes.
type reply[A any] struct {
	Error  string `json:"error,omitempty"`
	Answer A      `json:"answer"`
}

// Serve answers requests, which come in lines of JSON, until they end.
func Serve[Q, A any](in io.Reader, out io.Writer, answer func(Q) (A, error)) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q Q
		if err := decoder.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		var r reply[A]
		var err error
		if r.Answer, err = answer(q); err != nil {
			r.Error = err.Error()
		}
		if err := encoder.Encode(r); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// Remote is this program in another role, which answers requests with [Serve].
type Remote[Q, A any] struct {
	*Process
	encoder *json.Encoder
	decoder *json.Decoder
}

// StartRemote starts one; dir is for what it logs, under name.
func StartRemote[Q, A any](place Place, dir, role, name string, env ...string) (*Remote[Q, A], error) {
	program := Self(role, env...)
	program.Talk, program.Log = true, filepath.Join(dir, name+".log")
	p, err := Start(place, program)
	if err != nil {
		return nil, err
	}
	return &Remote[Q, A]{Process: p, encoder: json.NewEncoder(p.Stdin), decoder: json.NewDecoder(p.Stdout)}, nil
}

// Ask waits for the answer to a request. The error is what the program says of it, or
// that it has ended.
func (m *Remote[Q, A]) Ask(q Q) (A, error) {
	var r reply[A]
	if err := m.encoder.Encode(q); err != nil {
		return r.Answer, errors.Join(fmt.Errorf("ask: %w", err), m.Alive())
	}
	if err := m.decoder.Decode(&r); err != nil {
		return r.Answer, errors.Join(fmt.Errorf("wait for the answer: %w", err), m.Alive())
	}
	if r.Error != "" {
		return r.Answer, errors.New(r.Error)
	}
	return r.Answer, nil
}
