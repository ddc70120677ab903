package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Sockets that the supervisor holds (systemd's socket activation) outlive the process: while
// no process accepts, connections wait in the kernel's queue, and so a restart refuses none.
// SO_REUSEPORT, by which two processes listen on one port, was not chosen: the kernel resets
// what waits in the queue of a socket that is closed, and a second process that was started
// by mistake would take half of the clients without a word.
// https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html

// passedNames are the names that sockets may be passed under (FileDescriptorName= in a
// .socket unit). They are those of the flags whose addresses they take the place of.
var passedNames = []string{"https", "http", "admin"}

// passedQueue is how many connections may wait. The kernel cuts it down to net.core.somaxconn;
// older systemds ask for 128 only.
const passedQueue = 1 << 16

// passedListeners returns the listeners that the process was started with, by name. The
// second call returns none. The caller closes them; their sockets stay with the supervisor.
func passedListeners(cfg *config) (map[string][]net.Listener, error) {
	passed := make(map[string][]net.Listener)
	var errs []error
	for _, f := range activation.Files(true) {
		ln, err := passedListener(cfg, f, passed)
		if err != nil {
			errs = append(errs, fmt.Errorf("socket that was passed as %q: %w", f.Name(), err))
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

func passedListener(cfg *config, f *os.File, passed map[string][]net.Listener) (net.Listener, error) {
	name := f.Name()
	switch {
	case !slices.Contains(passedNames, name):
		return nil, fmt.Errorf("nothing is known by that name: FileDescriptorName= has to be one of %s", strings.Join(passedNames, ", "))
	case name == "https" && cfg.plain:
		return nil, errors.New("-plain serves no TLS: pass the socket as http")
	case name == "http" && cfg.http == "", name == "admin" && cfg.admin == "":
		return nil, fmt.Errorf("-%s is off", name)
	case name != "https" && len(passed[name]) > 0:
		return nil, errors.New("there may be one of that name")
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("not listening: %w", err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("it listens on %s, and not on TCP", ln.Addr().Network())
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

// A quietListener turns the probes off that package net turns on for each connection, as
// listenAll does for its own.
type quietListener struct{ *net.TCPListener }

func (l quietListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	_ = conn.SetKeepAlive(false) // fails on a closed connection, and so does the first read
	return conn, nil
}

// notify tells systemd how far the process is, if it wants to know (Type=notify).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd", "state", state, "err", err)
	}
}
