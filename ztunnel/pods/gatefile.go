package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// writeEnrolment keeps the file by which the CNI gate decides while this
// process is down. It is first written when all namespaces are known.
func (p *Pods) writeEnrolment(ctx context.Context) {
	written, before := p.readEnrolment()
	for {
		enrolment := p.enrolment(before)
		p.noteEnrolled(enrolment)
		content, err := json.MarshalIndent(enrolment, "", "  ")
		if err != nil {
			err = fmt.Errorf("encode enrolment: %w", err)
		}
		if err == nil && !bytes.Equal(content, written) {
			err = cniproto.EnrolmentKind.Write(p.config.EnrolmentPath, content)
		}
		p.mu.Lock()
		if err != nil && p.gateError == nil {
			p.logger.Error("enrolment not written", "error", err)
		}
		p.gateError = err
		p.mu.Unlock()

		var retry <-chan time.Time
		if err != nil {
			retry = time.After(saveRetry)
		} else {
			written, before = content, enrolment
		}
		select {
		case <-ctx.Done():
			return
		case <-p.watch.enrolmentChanged:
		case <-retry:
		}
	}
}

// readEnrolment returns what the last process wrote; nothing, to be written
// anew, where that cannot be read.
func (p *Pods) readEnrolment() (content []byte, enrolment cniproto.Enrolment) {
	path := p.config.EnrolmentPath
	content, err := cniproto.EnrolmentKind.Read(path)
	if err == nil {
		err = json.Unmarshal(content, &enrolment)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cniproto.Enrolment{}
	}
	if err != nil {
		p.logger.Error("enrolment of the last process not known: written anew", "path", path, "error", err)
		return nil, cniproto.Enrolment{}
	}
	return content, enrolment
}

// enrolment is what the gate has to know now. That a namespace had labelled
// pods is remembered for as long as it exists.
func (p *Pods) enrolment(before cniproto.Enrolment) cniproto.Enrolment {
	now := cniproto.Enrolment{Excluded: p.config.NeverHeld, Namespaces: make(map[string]cniproto.NamespaceEnrolment)}
	labelled := make(map[string]bool)
	removing := p.watch.removing()
	for _, object := range p.watch.labelled.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && pod.Labels[DataplaneModeLabel] == modeAmbient {
			labelled[pod.Namespace] = true
		}
	}
	for _, object := range p.watch.namespaces.GetStore().List() {
		namespace, ok := object.(*corev1.Namespace)
		if !ok {
			continue
		}
		mode := cniproto.ModeNone
		if namespace.Labels[DataplaneModeLabel] == modeAmbient && !removing {
			mode = cniproto.ModeAmbient
		}
		was := before.Namespaces[namespace.Name]
		if was.Mode != mode || was.Since.IsZero() {
			was.Since = time.Now().UTC().Truncate(time.Second)
		}
		now.Namespaces[namespace.Name] = cniproto.NamespaceEnrolment{
			Mode:         mode,
			Since:        was.Since,
			LabelledPods: !removing && (labelled[namespace.Name] || was.LabelledPods),
		}
	}
	return now
}
