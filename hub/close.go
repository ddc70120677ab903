package hub

import (
	"time"

	"github.com/coder/websocket"
)

// Status codes that the hub closes with, and their reasons (at most 123 bytes).
// https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
//
// The WebSocket library closes by itself with 1002 (protocol error) and with 1009
// (a message over [MaxMessage]).
const (
	// "1001 indicates that an endpoint is 'going away', such as a server going down".
	codeStopping   = websocket.StatusGoingAway
	reasonStopping = "the server is stopping"

	// "1007 indicates that an endpoint is terminating the connection because it has
	// received data within a message that was not consistent with the type of the
	// message (e.g., non-UTF-8 [RFC3629] data within a text message)."
	codeNotUTF8   = websocket.StatusInvalidFramePayloadData
	reasonNotUTF8 = "a text message was not UTF-8"

	// "1008 indicates that an endpoint is terminating the connection because it has
	// received a message that violates its policy."
	codeRubbish   = websocket.StatusPolicyViolation
	reasonRubbish = "too many messages that are no actions"
)

const (
	// maxRubbish is how many messages in a row may be rubbish. A person who writes a
	// client makes a few mistakes; a scanner makes nothing else.
	maxRubbish = 16

	// closeTimeout bounds the closing handshake, so that a peer that does not answer
	// our close frame is disconnected all the same. It is below the 10 seconds that
	// Docker and most supervisors give a process to stop.
	closeTimeout = 5 * time.Second

	// stallTimeout is how long a blocked client may make no progress at all.
	stallTimeout = 10 * time.Second
)
