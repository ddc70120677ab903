package hub

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

// fionbio is the code of the control request that makes a socket non-blocking.
// https://learn.microsoft.com/en-us/windows/win32/winsock/winsock-ioctls
const fionbio = 0x8004667e

// prepare makes the socket non-blocking. That concerns only calls without an OVERLAPPED structure, as
// writeFD makes them. Package net passes one with each call and waits for its completion as before.
func (c *Conn) prepare() {
	_ = c.raw.Control(func(fd uintptr) {
		on := uint32(1)
		var n uint32
		err := windows.WSAIoctl(windows.Handle(fd), fionbio, (*byte)(unsafe.Pointer(&on)), uint32(unsafe.Sizeof(on)), nil, 0, &n, nil, 0)
		if err != nil {
			c.err = err // a write would wait
		}
	})
}

// writeFD sends c.p on the socket fd, for [syscall.RawConn].Write. It always reports true, which means
// done: package net cannot wait until a socket is writable on Windows.
func (c *Conn) writeFD(fd uintptr) bool {
	if len(c.p) == 0 {
		return true
	}
	buf := windows.WSABuf{Len: uint32(len(c.p)), Buf: &c.p[0]}
	var n uint32
	switch err := windows.WSASend(windows.Handle(fd), &buf, 1, &n, 0, nil, nil); err {
	case nil:
		c.n = int(n)
	case windows.WSAEWOULDBLOCK:
	default:
		c.errno = err
	}
	return true
}

func shutdownWrite(fd uintptr) error { return windows.Shutdown(windows.Handle(fd), windows.SHUT_WR) }
