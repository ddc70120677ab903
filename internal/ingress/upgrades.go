package ingress

import (
	"fmt"
	"net/http"

	"golang.org/x/net/http/httpguts"

	"plusminus/hub"
)

// Upgrades refuses WebSocket opening handshakes that cannot succeed for a reason on the way to the server, and
// says so to the client and in the log. Its methods are safe from any goroutine.
type Upgrades struct {
	// Immutable after New.
	events *hub.Events
}

// HasUpgrade reports whether r has the Upgrade header of a WebSocket opening handshake.
func HasUpgrade(r *http.Request) bool {
	return httpguts.HeaderValuesContainsToken(r.Header["Upgrade"], "websocket")
}

// WantsWebSocket reports whether r comes from a WebSocket client, also if a proxy has removed its Upgrade:
// nothing but an opening handshake has a Sec-WebSocket-Key.
// https://www.rfc-editor.org/rfc/rfc6455#section-11.3.1
func WantsWebSocket(r *http.Request) bool {
	return HasUpgrade(r) || r.Method == http.MethodGet && r.Header.Get("Sec-WebSocket-Key") != ""
}

const textStripped = "the WebSocket handshake arrived without a usable Upgrade: a proxy in front does not pass Upgrade on"

// Stripped reports whether r is an opening handshake that has its key but no usable Upgrade, and answers 426 if
// so. A proxy that does not know WebSockets removes Upgrade and Connection, which are for one hop only, or
// speaks HTTP/1.0. https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
func (u *Upgrades) Stripped(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet || r.Header.Get("Sec-WebSocket-Key") == "" ||
		HasUpgrade(r) && r.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") {
		return false
	}
	u.refuse(w, r, ReasonUpgradeStripped, "websocket", textStripped)
	return true
}

// WithoutTLS answers 426 to the opening handshake r, which came to a listener without TLS. url is the wss:// URL
// to connect to.
//
// It is not the redirect that pages get. Browsers fail the connection on any redirect, and clients that follow
// redirects refuse https://, which is no address of a WebSocket. A redirect to wss:// would help the few that
// follow it, and hide the wrong URL from their authors. So the answer is an error that names the right URL.
// https://searchfox.org/firefox-main/source/testing/web-platform/tests/websockets/opening-handshake/received-301-code.html
func (u *Upgrades) WithoutTLS(w http.ResponseWriter, r *http.Request, url string) {
	u.refuse(w, r, ReasonUpgradePlain, upgradeTLS, "no WebSocket without TLS on this port: connect to "+url)
}

// upgradeTLS is the Upgrade header of an answer that asks for TLS.
// https://www.rfc-editor.org/rfc/rfc2817#section-4.2
const upgradeTLS = "TLS/1.2, HTTP/1.1"

// refuse answers 426. "The server MUST send an Upgrade header field in a 426 response to indicate the required
// protocol(s)" https://www.rfc-editor.org/rfc/rfc9110#section-15.5.22
func (u *Upgrades) refuse(w http.ResponseWriter, r *http.Request, reason hub.Reason, upgrade, text string) {
	// At most 40 characters of each, since the client chooses them.
	err := fmt.Errorf("an opening handshake by %s with Upgrade %.40q, Connection %.40q", r.Proto, r.Header.Get("Upgrade"), r.Header.Get("Connection"))
	u.events.Refused(reason, "remote", hub.AddressOf(r.RemoteAddr), "code", http.StatusUpgradeRequired, "err", err)
	w.Header().Set("Upgrade", upgrade)
	w.Header().Set("Connection", "Upgrade")
	http.Error(w, text, http.StatusUpgradeRequired)
}
