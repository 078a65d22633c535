package pods

// State is where a pod stands on its way into the mesh and out of it.
//
//	NotEnrolled -> Pending -> Capturing -> Captured -> Withdrawing -> Released
//	                  ^           |            |             |
//	                  |           v            v             v
//	                  +------- Failed         Gone <---------+
type State int

const (
	// StateNotEnrolled: to be left alone, and left alone.
	StateNotEnrolled State = iota
	// StatePending: to be captured, and its sandbox is not known yet.
	StatePending
	// StateCapturing: its sandbox is known, capture is under way.
	StateCapturing
	// StateCaptured: both directions are redirected.
	StateCaptured
	// StateWithdrawing: captured, and to be left alone once no node sends it
	// tunnels any more, which the controller says.
	StateWithdrawing
	// StateReleased: left alone after having been captured.
	StateReleased
	// StateFailed: to be captured, and it cannot be: tried again, ever more rarely.
	StateFailed
	// StateGone: neither pod nor capture is left.
	StateGone
)

func (s State) String() string {
	return [...]string{"NotEnrolled", "Pending", "Capturing", "Captured", "Withdrawing", "Released", "Failed", "Gone"}[s]
}

// action is what a worker does next.
type action int

const (
	// actNothing: wait for the facts to change.
	actNothing action = iota
	// actCapture: find the sandbox and capture it.
	actCapture
	// actRelease: redirect no longer, drain what is left.
	actRelease
	// actClose: the sandbox is gone, end what was in it.
	actClose
	// actForget: remove what an earlier process left pinned.
	actForget
	// actEnd: nothing is left to watch over.
	actEnd
)

func (a action) String() string {
	return [...]string{"nothing", "capture", "release", "close", "forget", "end"}[a]
}

// observation is all that a pod's next step depends on.
type observation struct {
	// alive: the pod object exists, and its phase is not terminal.
	alive bool
	// mode that Kubernetes asks for.
	mode Mode
	// running: this process captures it.
	running bool
	// pinned: a capture by an earlier process is still pinned.
	pinned bool
	// sandboxGone: the network namespace of the running capture is not there any
	// more, or the CNI plugin saw its end.
	sandboxGone bool
	// granted: the controller released it since it began to withdraw.
	granted bool
	// released: it was let go by its release, and has not been captured since.
	released bool
}

// next decides a pod's next step. It is called again after each step and on
// each change: nothing is remembered but what the observation holds.
func next(o observation) (State, action) {
	switch {
	case o.running:
		return nextRunning(o)
	case !o.alive && o.pinned:
		return StateGone, actForget
	case !o.alive:
		return StateGone, actEnd
	case o.mode == Enrolled:
		return StatePending, actCapture
	case o.pinned:
		// It was captured when the last process ended, so others still send it
		// tunnels: it has to be served until they do not.
		return StatePending, actCapture
	case o.mode == Undetermined:
		return StatePending, actNothing
	case o.mode == Misunderstood:
		return StateFailed, actNothing
	case o.released:
		return StateReleased, actNothing
	}
	return StateNotEnrolled, actNothing
}

func nextRunning(o observation) (State, action) {
	switch {
	case o.sandboxGone:
		return StatePending, actClose
	case !o.alive, o.mode == Enrolled, o.mode == Undetermined:
		// A pod that is deleted, even by force, is captured until its last process
		// has ended: the sandbox goes after them.
		return StateCaptured, actNothing
	case o.mode == Misunderstood:
		return StateFailed, actNothing
	case o.granted:
		return StateReleased, actRelease
	}
	return StateWithdrawing, actNothing
}
