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
	// "1012 indicates that the service is restarted. A client may reconnect, and if it chooses
	// to do, should reconnect using a randomized delay of 5 - 30s."
	// https://www.ietf.org/mail-archive/web/hybi/current/msg09649.html
	// To go for good looks the same from outside: who comes back finds another replica or nobody.
	codeStopping   = websocket.StatusServiceRestart
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
	// our close frame is disconnected all the same.
	closeTimeout = 5 * time.Second

	// stallTimeout is how long a blocked client may make no progress at all.
	stallTimeout = 10 * time.Second
)
