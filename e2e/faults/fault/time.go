package fault

import (
	"context"
	"fmt"
	"time"
)

// pastCertificates is more than any certificate lives.
const pastCertificates = 25 * time.Hour

func ofTime() []Fault {
	return []Fault{
		{
			Name: "cert-expired",
			What: "All certificates have expired, and nobody issues new ones.",
			How: "The controller is scaled to 0, and in the processes of ztunnel on both nodes the clock jumps 25 hours ahead, past the certificates' 24. " +
				"The cause goes with the controller's return, and the clock's. Nobody can prove who he is: what lives in tunnels is cut, and nothing new is connected through them, until the cause is gone. Simulated: the clock of these processes alone (clock_gettime in their vDSO), not the machine's.",
			Inject: func(ctx context.Context, l *Lab) error {
				if err := l.stopController(ctx); err != nil {
					return err
				}
				return l.jump(pastCertificates, Node, Other)
			},
			Heal: func(ctx context.Context, l *Lab) error {
				if err := l.jump(0, Node, Other); err != nil {
					return err
				}
				return l.startController(ctx)
			},
			Hold: 5 * time.Second,
		},
		{
			Name:   "clock-jump",
			What:   "The clock of one node jumps a day ahead.",
			How:    "25 hours, in the process of ztunnel alone (clock_gettime in its vDSO), and back. To that node every certificate has expired: as above.",
			Inject: func(_ context.Context, l *Lab) error { return l.jump(pastCertificates, Node) },
			Heal:   func(_ context.Context, l *Lab) error { return l.jump(0, Node) },
			Hold:   5 * time.Second,
		},
	}
}

// jump sets how far ahead ztunnel's processes on nodes believe to be.
func (l *Lab) jump(by time.Duration, nodes ...string) error {
	for _, node := range nodes {
		all, err := l.Bed.Machine(node).Processes(ztunnel)
		if err != nil {
			return err
		}
		for _, p := range all {
			if err := JumpClock(p.PID, by); err != nil {
				return fmt.Errorf("ztunnel of %s: %w", node, err)
			}
		}
	}
	return nil
}
