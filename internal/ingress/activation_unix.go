//go:build unix

package ingress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets that the supervisor holds (systemd's socket activation) outlive the process. While no
// process accepts, connections wait in the kernel's queue, so a restart refuses none.
//
// SO_REUSEPORT, with which two processes listen on one port, was not chosen. The kernel resets the
// connections in the queue of a socket that is closed. And a second process that was started by
// mistake would silently take half of the clients.
// https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html

// passedNames are the names under which sockets may be passed (FileDescriptorName= in a .socket
// unit): those of the flags whose addresses they replace.
var passedNames = []string{"https", "http", "admin"}

// passedQueue is how many connections may wait in the queue of a passed socket. The kernel caps it at
// net.core.somaxconn; older versions of systemd set only 128.
const passedQueue = 1 << 16

// passedListeners returns the listeners that the process was started with, by name. A second call
// returns none. The caller closes them; their sockets stay with the supervisor.
func passedListeners(on Addresses) (map[string][]net.Listener, error) {
	passed := make(map[string][]net.Listener)
	var errs []error
	for _, f := range activation.Files(true) {
		ln, err := passedListener(on, f, passed)
		if err != nil {
			errs = append(errs, fmt.Errorf("socket passed as %q: %w", f.Name(), err))
		} else {
			passed[f.Name()] = append(passed[f.Name()], ln)
		}
		f.Close()
	}
	if len(errs) == 0 {
		return passed, nil
	}
	for _, lns := range passed {
		for _, ln := range lns {
			ln.Close()
		}
	}
	return nil, errors.Join(errs...)
}

func passedListener(on Addresses, f *os.File, passed map[string][]net.Listener) (net.Listener, error) {
	name := f.Name()
	switch {
	case !slices.Contains(passedNames, name):
		return nil, fmt.Errorf("no listener has this name: FileDescriptorName= has to be one of %s", strings.Join(passedNames, ", "))
	case name == "https" && len(on.HTTPS) == 0:
		return nil, errors.New("-plain serves no TLS: pass the socket as http")
	case name == "http" && on.HTTP == "", name == "admin" && on.Admin == "":
		return nil, fmt.Errorf("-%s is off", name)
	case name != "https" && len(passed[name]) > 0:
		return nil, errors.New("only one socket may have this name")
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("not listening: %w", err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("it listens on %s, not on TCP", ln.Addr().Network())
	}
	if err := lengthenQueue(tcp); err != nil {
		ln.Close()
		return nil, fmt.Errorf("setting the length of its queue: %w", err)
	}
	return quietListener{tcp}, nil
}

func lengthenQueue(ln *net.TCPListener) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = syscall.Listen(int(fd), passedQueue) })
	return errors.Join(err, listenErr)
}

// A quietListener turns off the TCP keep-alive probes that package net turns on for each connection,
// as Listen does for its own listeners.
type quietListener struct{ *net.TCPListener }

func (l quietListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	_ = conn.SetKeepAlive(false) // fails on a closed connection, as does the first read
	return conn, nil
}
