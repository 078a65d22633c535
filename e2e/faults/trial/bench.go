package trial

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/e2e/faults/fault"
	"github.com/ambit-mesh/ambit/e2e/faults/orders"
	"github.com/ambit-mesh/ambit/e2e/faults/result"
	"github.com/ambit-mesh/ambit/e2e/faults/wire"
	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// Control is the mode of those without the defence.
const Control = "control"

// Modes are all others.
var Modes = []string{result.Strict, result.Permissive}

// Bench is the applications of all modes, and the taps.
type Bench struct {
	lab        *fault.Lab
	taps       *wire.Taps
	tales      *tales
	cast       *cast
	modes      []string
	namespaces map[string]string // by mode

	// Owned by Run: how many newcomers there were, and how many there are in each
	// namespace.
	newcomer, added int

	mu     sync.Mutex
	attack []string        // guarded by mu
	given  map[name]string // orders that pods have, guarded by mu

	stop  context.CancelFunc
	group sync.WaitGroup
	errs  chan error
}

// New makes the namespaces and returns once every application answers.
func New(ctx context.Context, bed *testbed.Bed, modes []string) (*Bench, error) {
	b := &Bench{
		lab: &fault.Lab{Bed: bed, Restarted: near}, tales: newTales(), modes: modes,
		namespaces: map[string]string{Control: "faults-control"}, given: map[name]string{}, errs: make(chan error, 1),
	}
	for _, mode := range modes {
		if !slices.Contains(Modes, mode) {
			return nil, fmt.Errorf("no mode %q: there are %v", mode, Modes)
		}
		b.namespaces[mode] = "faults-" + mode
	}
	for _, namespace := range b.namespaces {
		b.lab.Namespaces = append(b.lab.Namespaces, namespace)
	}
	var err error
	if b.cast, err = newCast(bed.Kubeconfig(), b.namespaces); err != nil {
		return nil, err
	}
	if err := errors.Join(b.lab.Renew(ctx), b.deploy(ctx)); err != nil {
		return nil, errors.Join(err, b.clear(context.WithoutCancel(ctx)))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	b.taps, err = wire.Watch(running, bed.Machine("switch").Namespace(), nodes(bed), orders.Marker)
	if err != nil {
		stop()
		return nil, errors.Join(err, b.clear(context.WithoutCancel(ctx)))
	}
	b.group.Go(func() { b.direct(running) })
	return b, nil
}

// nodes are the lab's, as e2e/cluster lays them out.
func nodes(bed *testbed.Bed) (all []wire.Node) {
	for i, n := range []string{"n1", "n2", "n3"} {
		all = append(all, wire.Node{Name: n, Namespace: bed.Machine(n).Namespace(), Local: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i+1)),
			netip.PrefixFrom(nodeAddress(i, 4), 32),
			netip.PrefixFrom(nodeAddress(i, 6), 128),
		}})
	}
	return all
}

func nodeAddress(index, family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr(fmt.Sprintf("172.30.0.%d", 11+index))
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:172:30::%d", 11+index))
}

// apiServer is what pods reach as the Service kubernetes.
var apiServer = netip.MustParseAddrPort("172.30.0.1:6443")

// who is who, for the judgement of a mode.
func (b *Bench) who(mode string) wire.Who {
	w := wire.Who{
		Pods: b.cast.addresses(mode), Strangers: map[netip.Addr]bool{}, Nodes: map[netip.Addr]bool{},
		HealthPort: orders.HealthPort, TunnelPort: 15008, StrangersWelcome: mode != result.Strict,
		Reused: b.cast.others(), APIServer: map[netip.AddrPort]bool{apiServer: true},
	}
	for other := range b.namespaces {
		if other != mode {
			for ip := range b.cast.addresses(other) {
				w.Strangers[ip] = true
			}
		}
	}
	for i := range 3 {
		w.Nodes[nodeAddress(i, 4)], w.Nodes[nodeAddress(i, 6)] = true, true
		// The address by which a node's pods see it, of the CNI's bridge or pair.
		w.Nodes[netip.MustParseAddr(fmt.Sprintf("10.244.%d.1", i+1))] = true
		w.Nodes[netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::1", i+1))] = true
	}
	return w
}

// deploy makes all namespaces anew, enrolled as their mode wants.
func (b *Bench) deploy(ctx context.Context) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	for mode, namespace := range b.namespaces {
		if err := b.kubectl(ctx, "create", "namespace", namespace); err != nil {
			return err
		}
		if mode != Control {
			if err := b.kubectl(ctx, "label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"); err != nil {
				return err
			}
		}
		if mode == result.Strict {
			if err := b.lab.Bed.Apply(ctx, namespace, []byte(strict)); err != nil {
				return err
			}
		}
	}
	return b.start(ctx)
}

// start makes the standing pods, and returns when they are ready.
func (b *Bench) start(ctx context.Context) error {
	for _, namespace := range b.namespaces {
		if err := b.lab.Bed.Apply(ctx, namespace, []byte(standing())); err != nil {
			return err
		}
	}
	for _, namespace := range b.namespaces {
		if err := b.kubectl(ctx, "-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=120s"); err != nil {
			return err
		}
	}
	return nil
}

// replace makes the standing pods anew.
func (b *Bench) replace(ctx context.Context) error {
	for _, namespace := range b.namespaces {
		if err := b.kubectl(ctx, "-n", namespace, "delete", "pods", "--all", "--grace-period=0", "--force"); err != nil {
			return err
		}
	}
	return b.start(ctx)
}

const strict = `apiVersion: ambit.mesh/v1alpha1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`

func (b *Bench) kubectl(ctx context.Context, args ...string) error {
	_, err := b.lab.Bed.Kubectl(ctx, args...)
	return err
}

// direct keeps orders as the cast changes, until ctx ends.
func (b *Bench) direct(ctx context.Context) {
	for ticker := time.NewTicker(castPoll); ; {
		b.cast.look(ctx) // where it fails, all stays as it was
		if err := b.order(); err != nil {
			select {
			case b.errs <- err:
			default:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// addPods creates a pod on the stricken node in each namespace.
func (b *Bench) addPods(ctx context.Context) error {
	b.newcomer++
	pod := fmt.Sprintf("%s%d", newcomer, b.newcomer)
	for _, namespace := range b.namespaces {
		// It has orders before it starts, so that its first moments are measured.
		b.mu.Lock()
		err := b.giveLocked(name{namespace, pod}, fault.Node, b.cast.now())
		b.mu.Unlock()
		if err != nil {
			return err
		}
		if err := b.lab.Bed.Apply(ctx, namespace, []byte(manifest(pod, fault.Node))); err != nil {
			return err
		}
	}
	b.added = 1
	return nil
}

func (b *Bench) removePods(ctx context.Context) error {
	b.added = 0
	var errs []error
	for who := range b.cast.now() {
		if strings.HasPrefix(who.pod, newcomer) {
			errs = append(errs, b.kubectl(ctx, "-n", who.namespace, "delete", "pod", who.pod, "--grace-period=0", "--force", "--ignore-not-found", "--wait=false"))
		}
	}
	return errors.Join(errs...)
}

// Close ends all, and removes what New made.
func (b *Bench) Close(ctx context.Context) error {
	b.stop()
	b.group.Wait()
	b.taps.Wait()
	err := b.clear(ctx)
	select {
	case failed := <-b.errs:
		err = errors.Join(err, fmt.Errorf("give orders: %w", failed))
	default:
	}
	return err
}

func (b *Bench) clear(ctx context.Context) error {
	var errs []error
	for _, namespace := range b.namespaces {
		b.kubectl(ctx, "-n", namespace, "delete", "pods", "--all", "--grace-period=0", "--force")
		errs = append(errs, b.kubectl(ctx, "delete", "namespace", namespace, "--ignore-not-found", "--wait"))
	}
	for _, node := range []string{"n1", "n2"} {
		_, err := b.lab.Bed.Machine(node).Exec(ctx, "rm", "-rf", orders.Folder)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
