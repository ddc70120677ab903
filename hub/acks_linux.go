package hub

import (
	"time"

	"golang.org/x/sys/unix"
)

// expectAcks implements socket with the TCP option TCP_USER_TIMEOUT.
//
// "When the value is greater than 0, it specifies the maximum amount of time in milliseconds that
// transmitted data may remain unacknowledged, or buffered data may remain untransmitted (due to zero
// window size) before TCP will forcibly close the corresponding connection and return ETIMEDOUT to
// the application." https://man7.org/linux/man-pages/man7/tcp.7.html
func (c *Conn) expectAcks(within time.Duration) {
	// It fails only on a closed connection.
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(within.Milliseconds()))
	})
}
