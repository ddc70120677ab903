package hub

import (
	"time"

	"github.com/coder/websocket"
)

// The status code of a shutdown, and the reasons in close frames, each at most 123 bytes. frames.go
// has the reasons for what it finds.
// https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
const (
	// "1012 indicates that the service is restarted. A client may reconnect, and if it chooses
	// to do, should reconnect using a randomized delay of 5 - 30s."
	// https://www.ietf.org/mail-archive/web/hybi/current/msg09649.html
	// It is also right for a server that stops for good: a client that reconnects finds another
	// replica, or no server.
	codeStopping = websocket.StatusServiceRestart
	textStopping = "the server is stopping"

	textNotUTF8    = "a text message is not UTF-8"
	textNotActions = "too many messages that are not actions"
	textPanic      = "a bug in the server"
)

// closeCodes has the status code of each reason why a connection ends. A connection that ends without
// a close frame counts as 1006, which is never sent. A connection that the peer closes counts as
// 1000, whatever code the peer sent.
var closeCodes = map[Reason]websocket.StatusCode{
	ReasonPeer:     websocket.StatusNormalClosure,
	ReasonStopping: codeStopping,

	// "1002 indicates that an endpoint is terminating the connection due to a protocol error."
	ReasonProtocol: websocket.StatusProtocolError,

	// "1007 indicates that an endpoint is terminating the connection because it has
	// received data within a message that was not consistent with the type of the
	// message (e.g., non-UTF-8 [RFC3629] data within a text message)."
	ReasonNotUTF8: websocket.StatusInvalidFramePayloadData,

	// "1008 indicates that an endpoint is terminating the connection because it has
	// received a message that violates its policy."
	ReasonRubbish:   websocket.StatusPolicyViolation,
	ReasonFlood:     websocket.StatusPolicyViolation,
	ReasonFragments: websocket.StatusPolicyViolation,

	// "1009 indicates that an endpoint is terminating the connection because it has
	// received a message that is too big for it to process."
	ReasonTooBig: websocket.StatusMessageTooBig,

	// "1011 indicates that a server is terminating the connection because it encountered an
	// unexpected condition that prevented it from fulfilling the request."
	ReasonPanic: websocket.StatusInternalError,

	// "1006 is a reserved value and MUST NOT be set as a status code in a Close control frame
	// by an endpoint."
	ReasonGone:    websocket.StatusAbnormalClosure,
	ReasonStalled: websocket.StatusAbnormalClosure,
	ReasonSilent:  websocket.StatusAbnormalClosure,
	ReasonDeaf:    websocket.StatusAbnormalClosure,
}

// StatusCode returns the status code of a connection that ends for this reason. It returns 0 if
// the reason is one for refusals only.
func (r Reason) StatusCode() int { return int(closeCodes[r]) }

const (
	// The maxNotActions-th message at once that is not an action closes the client for ReasonRubbish.
	// The client gets back one such message each notActionsEvery, and all of them with an action.
	//
	// A developer's client makes a few mistakes. Other people's libraries send heartbeats that this
	// protocol does not have, each 5 to 60 seconds, and must stay connected for ever. So must one
	// heartbeat a second: it costs a hundredth of what maxExcess allows. A scanner sends faster: at
	// 10 messages a second it is closed after less than 2 seconds.
	maxNotActions   = 16
	notActionsEvery = time.Second

	// closeTimeout bounds the closing handshake: a peer that does not answer our close frame in
	// time is disconnected.
	closeTimeout = 5 * time.Second

	// failTimeout takes the place of closeTimeout for a peer that has violated the protocol. It
	// is not 0, since a reset could overtake our close frame.
	failTimeout = time.Second

	// lostTimeout and maxLostRead bound the time and the bytes that are still read from a client after a
	// write to it has failed (see writeFailed). 16 KB are 680 actions, 17 times the default burst.
	lostTimeout = time.Second
	maxLostRead = 16 << 10

	// stallTimeout is how long a blocked client may make no progress before it is disconnected.
	stallTimeout = 10 * time.Second
)
