package hbone

import (
	"fmt"

	"golang.org/x/net/http2"
)

func (s *session) gotSettingsLocked(payload []byte) error {
	err := parseSettings(payload, func(set http2.Setting) error {
		switch set.ID {
		case http2.SettingMaxFrameSize:
			s.peerFrame = int(set.Val)
		case http2.SettingMaxConcurrentStreams:
			s.peerStreams = set.Val
		case http2.SettingInitialWindowSize:
			return s.moveWindowsLocked(int64(set.Val))
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.control = appendSettingsAck(s.control)
	s.chargeLocked(frameHeader)
	return nil
}

// moveWindowsLocked changes the windows of all streams, possibly to below zero
// (RFC 9113 section 6.9.2).
func (s *session) moveWindowsLocked(initial int64) error {
	delta := initial - s.peerWindow
	s.peerWindow = initial
	for _, st := range s.streams {
		if st.sendWindow += delta; st.sendWindow > maxWindow {
			return connectionError{http2.ErrCodeFlowControl, ProtocolError, "window overflows"}
		}
		st.wakeLocked()
	}
	return nil
}

func (s *session) gotPingLocked(h header, payload [8]byte) {
	if !h.flags.Has(http2.FlagPingAck) {
		s.control = appendPing(s.control, true, payload)
		s.chargeLocked(frameHeader + len(payload))
		return
	}
	if payload == drainPing {
		select {
		case <-s.drainPong:
		default:
			close(s.drainPong)
		}
	}
}

// gotGoAwayLocked: the peer serves no stream beyond the last that it names.
func (s *session) gotGoAwayLocked(last uint32, code http2.ErrCode) {
	if s.server {
		return // what a client will not serve are pushes; there are none
	}
	s.peerGone = true
	for id, st := range s.streams {
		if id > last {
			st.endLocked(fmt.Errorf("%w: peer is going away (%s)", ErrNotProcessed, code))
		}
	}
	s.leftLocked()
}
