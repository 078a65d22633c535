package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// What this side announces; where nothing else is said, the figures of the
// ambient meshes, so that no peer sees other behaviour than it was tuned for.
const (
	tunnelWindow = 16 << 20
	maxReadFrame = 1 << 20
	// maxServerStreams bounds the streams of one tunnel, its handlers, and the
	// requests that wait for one. A handler counts until it returned, whatever became
	// of its stream: resetting early buys nothing.
	maxServerStreams = 200
	serverHeaderList = 64 << 10
	clientHeaderList = 16 << 10
)

// Ours.
const (
	// firstWindow is what a stream may send unread at first. One whose reader
	// keeps up gets more, up to maxStreamWindow: enough for a gigabyte a second
	// over 4 ms, or 100 MB over 40 ms.
	firstWindow     = 256 << 10
	maxStreamWindow = 4 << 20
	// grownBudget is what the windows of a tunnel's streams may have grown by
	// together.
	grownBudget = 32 << 20
	// receiveBudget bounds what a tunnel buffers for readers that do not read. It
	// is what all its streams' windows come to, and then there is still room for
	// a tunnel's window: readers that stand still never hold up the others.
	receiveBudget = maxServerStreams*firstWindow + grownBudget + tunnelWindow
	// Credit is given back in quarters of a window: few frames, never a stall.
	tunnelCredit = tunnelWindow / 4
	// outLimit is how much bulk may wait for the connection before writers do:
	// four large frames.
	outLimit = 1 << 20
	// outControlLimit bounds answers (to pings, settings, broken streams) that
	// wait for a peer which asks and does not read.
	outControlLimit = 64 << 10
	// maxControlFrame bounds every frame but DATA, and a whole block of headers:
	// they have to be held in whole.
	maxControlFrame = 2 * serverHeaderList
	// maxSettingsFrame is several times what there are settings: each may have to
	// be applied to every stream.
	maxSettingsFrame = 6 * 32
	// maxContinuations bounds the frames that a block of headers comes in; one
	// would do, for what we announce.
	maxContinuations = 16
	// excessHeaderList, times the announced limit, is what no mistake explains.
	excessHeaderList = 4
	// maxHeaderBlock is the smallest maximum frame size (RFC 9113 section
	// 4.2): what fits needs no CONTINUATION.
	maxHeaderBlock = 16 << 10
	// assumedStreams is how many streams are opened before the peer's settings
	// are known (RFC 9113 section 5.1.2 recommends no less than 100).
	assumedStreams = 100
	// chunkSize is a TLS record.
	chunkSize = 16 << 10
	// maxReason bounds the words of a refusal.
	maxReason = 128

	prefaceTimeout = 5 * time.Second
	// unusedTimeout is how long a server keeps a tunnel without a stream. Peers of
	// the ambient meshes end theirs after five minutes; who wants to keep more open
	// than he uses is told to go away, in order.
	unusedTimeout = 15 * time.Minute
	// flushTimeout bounds the last words (GOAWAY, RST_STREAM) of a tunnel that is
	// cut, and the wait for the peer to close its half.
	flushTimeout = time.Second
	// lastBytesTimeout bounds the writing of what streams that ended in order
	// have left: half a MiB, at modem speed.
	lastBytesTimeout = 10 * time.Second
	// drainPingTimeout bounds the wait for the round trip after which no
	// further CONNECT can be under way.
	drainPingTimeout = time.Second
	// leaveTimeout bounds the wait for a peer to close a drained tunnel. Who reads
	// slowly behind it may need it; few peers do not close by themselves.
	leaveTimeout = 5 * time.Second

	// A dead peer is noticed within 9 s at most, and only the silent are asked.
	defaultPingEvery   = 2 * time.Second
	defaultPingTimeout = 5 * time.Second

	defaultDrainTimeout = 25 * time.Second

	// rateOver is the time over which a tunnel's rate is taken.
	rateOver = 200 * time.Millisecond
)

// Of the specification.
const (
	initialWindow = 65535     // RFC 9113 section 6.9.2
	maxWindow     = 1<<31 - 1 // RFC 9113 section 6.9.1
	maxStreamID   = 1<<31 - 1 // RFC 9113 section 5.1.1
	minMaxFrame   = 16 << 10  // RFC 9113 section 6.5.2
	frameHeader   = 9         // RFC 9113 section 4.1
)

// budget is how much a peer may do that carries no data: a token bucket.
type budget struct {
	tokens, burst, perSecond float64
	at                       time.Time
}

// quietBudget is for frames that carry nothing: PING, SETTINGS, PRIORITY,
// empty DATA, unknown ones. Those that carry data earn them.
func quietBudget() budget { return newBudget(1000, 100) }

// updateBudget is for WINDOW_UPDATE: some peers send one for every few KiB that
// they read, so what was sent to them earns them.
func updateBudget() budget { return newBudget(2000, 100) }

// resetBudget is for streams that the peer made and ended without use: reset
// before the answer, or broken so that this side had to reset them. Clients that
// try again and again, with short patience, to reach an application that does
// not answer stay within it; ten thousand a second do not.
func resetBudget() budget { return newBudget(1000, 500) }

func newBudget(burst, perSecond float64) budget {
	return budget{tokens: burst, burst: burst, perSecond: perSecond, at: time.Now()}
}

// earn adds n tokens.
func (b *budget) earn(n float64) { b.tokens = min(b.burst, b.tokens+n) }

// spend takes a token and reports whether there was one.
func (b *budget) spend() bool {
	if b.tokens < 1 {
		now := time.Now()
		b.earn(now.Sub(b.at).Seconds() * b.perSecond)
		b.at = now
		if b.tokens < 1 {
			return false
		}
	}
	b.tokens--
	return true
}

func clientSettings() []http2.Setting {
	return []http2.Setting{
		{ID: http2.SettingEnablePush, Val: 0},
		{ID: http2.SettingInitialWindowSize, Val: firstWindow},
		{ID: http2.SettingMaxFrameSize, Val: maxReadFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: clientHeaderList},
	}
}

func serverSettings() []http2.Setting {
	return []http2.Setting{
		{ID: http2.SettingMaxConcurrentStreams, Val: maxServerStreams},
		{ID: http2.SettingInitialWindowSize, Val: firstWindow},
		{ID: http2.SettingMaxFrameSize, Val: maxReadFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: serverHeaderList},
	}
}
