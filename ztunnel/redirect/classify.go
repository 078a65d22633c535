package redirect

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// Leave notes that the pod in a namespace is known, and not to be captured: it may connect where unclassified pods may not.
func (r *Redirect) Leave(netns *podns.NetNS) error {
	if netns.Cookie() == r.hostCookie {
		return nil // which has its own rule
	}
	if err := r.node.Classify(netns.Cookie(), bpf.NotEnrolled); err != nil {
		return fmt.Errorf("note that network namespace %s is left alone: %w", netns.Path(), err)
	}
	return nil
}

// Leave notes the same of a captured pod that is about to be released.
func (c *Capture) Leave() error { return c.redirect.Leave(c.pod.NetNS) }

// ErrFull is wrapped by Leave if more namespaces are noted than there is room for: ForgetClasses makes some.
var ErrFull = unix.E2BIG

// RefuseUnclassified says whether connect(2) for TCP fails in pods that are neither captured nor left alone: any of them might be
// one that is to be captured, and strict. It holds until it is said otherwise, whatever becomes of the process.
func (r *Redirect) RefuseUnclassified(refuse bool) error {
	if err := r.node.RefuseUnclassified(refuse); err != nil {
		return fmt.Errorf("refuse unclassified pods: %w", err)
	}
	return nil
}

// RefusesUnclassified tells what RefuseUnclassified said last, in whatever process.
func (r *Redirect) RefusesUnclassified() (bool, error) { return r.node.RefusesUnclassified() }

// classifySelf lets this process connect. Its namespace is that of its pod.
func (r *Redirect) classifySelf() error {
	own, err := podns.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	return r.node.Classify(own.Cookie(), bpf.Ztunnel)
}

// ForgetClasses removes what is classified of namespaces that are gone: of all but those that live.
func (r *Redirect) ForgetClasses(lives func(cookie uint64) bool) error {
	classes, err := r.node.Classes()
	if err != nil {
		return fmt.Errorf("list classified namespaces: %w", err)
	}
	for cookie, class := range classes {
		if class == bpf.NotEnrolled && !lives(cookie) {
			if err := r.node.Declassify(cookie); err != nil {
				return fmt.Errorf("forget a classified namespace: %w", err)
			}
		}
	}
	return nil
}
