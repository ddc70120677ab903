package hub

import (
	"time"

	"github.com/coder/websocket"
)

// The status code that the hub is shut down with, and reasons that close frames tell (at most
// 123 bytes). What frames finds has its reasons there.
// https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
const (
	// "1012 indicates that the service is restarted. A client may reconnect, and if it chooses
	// to do, should reconnect using a randomized delay of 5 - 30s."
	// https://www.ietf.org/mail-archive/web/hybi/current/msg09649.html
	// To go for good looks the same from outside: who comes back finds another replica or nobody.
	codeStopping = websocket.StatusServiceRestart
	textStopping = "the server is stopping"

	textNotUTF8    = "a text message was not UTF-8"
	textNotActions = "too many messages that are no actions"
	textPanic      = "a bug of the server"
)

// closeCodes are the status codes that connections end with. Those that end without a close
// frame of ours count as 1006, which is never sent, and those that the peer has closed as
// 1000, whatever code it chose.
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

// StatusCode returns the status code that a connection ends with for this reason, or 0 if it
// is none to end one.
func (r Reason) StatusCode() int { return int(closeCodes[r]) }

const (
	// maxNotActions is how many messages in a row may be rubbish. A person who writes a
	// client makes a few mistakes; a scanner makes nothing else.
	maxNotActions = 16

	// closeTimeout bounds the closing handshake, so that a peer that does not answer
	// our close frame is disconnected all the same.
	closeTimeout = 5 * time.Second

	// failTimeout is how long we listen to a peer whose frames cannot be understood, after our
	// close frame, which a reset would overtake.
	failTimeout = time.Second

	// stallTimeout is how long a blocked client may make no progress at all.
	stallTimeout = 10 * time.Second
)
