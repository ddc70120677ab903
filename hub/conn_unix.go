//go:build unix

package hub

import "syscall"

// prepare does nothing: package net has made the socket non-blocking.
func (c *Conn) prepare() {}

// writeFD writes c.p to fd, for [syscall.RawConn].Write. It always reports true, which means done:
// otherwise RawConn.Write would wait until the socket is writable.
func (c *Conn) writeFD(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.p)
		switch err {
		case nil:
			c.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			c.errno = err
		}
		return true
	}
}

func shutdownWrite(fd uintptr) error { return syscall.Shutdown(int(fd), syscall.SHUT_WR) }
