package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the user and system CPU time of a process, including threads that have
// ended. It reads the process's CPU clock (clock_getcpuclockid(3)), which has nanosecond
// resolution; utime and stime of /proc/PID/stat have steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	// The kernel's encoding of the clock: the complement of the pid, and 2 for CPUCLOCK_SCHED.
	// https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html
	clock := int32(^pid<<3 | 2)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// rss returns the resident memory of a process in bytes.
func rss(pid int) (int64, error) {
	// smaps_rollup walks the page tables and is exact; statm misses what each thread has cached.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	return parseRSS(b)
}

func parseRSS(b []byte) (int64, error) {
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 3 && f[0] == "Rss:" && f[2] == "kB" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("smaps_rollup has no line Rss")
}

// openFiles returns how many open file descriptors a process has.
func openFiles(pid int) (int, error) {
	d, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return len(names), err
}

// sendQueues returns how many bytes the server on addr has written that its clients have not
// acknowledged, and how many connections have such bytes.
func sendQueues(addr string) (total int64, connections int, err error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, 0, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, 0, err
	}
	total, connections = parseSendQueues(b, uint16(p))
	return total, connections, nil
}

// parseSendQueues reads /proc/net/tcp, whose lines begin like
//
//	1: 0100007F:1F90 0200007F:8000 01 00000010:00000000
//
// with the local address, the remote address, the state, and the send and receive queues.
func parseSendQueues(b []byte, port uint16) (total int64, connections int) {
	suffix := fmt.Sprintf(":%04X", port)
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 5 || f[3] != "01" || !strings.HasSuffix(f[1], suffix) {
			continue
		}
		queue, _, _ := strings.Cut(f[4], ":")
		if n, err := strconv.ParseInt(queue, 16, 64); err == nil && n > 0 {
			total += n
			connections++
		}
	}
	return total, connections
}

// pinSelf moves this whole process to one core. It executes the program again there, because
// threads that the runtime has already made would stay on other cores. more are arguments to
// add: defaults that the new process could not compute from its one core. If cpu is
// negative, pinSelf does nothing.
func pinSelf(cpu int, more ...string) error {
	if cpu < 0 {
		return nil
	}
	var want, now unix.CPUSet
	want.Set(cpu)
	if err := unix.SchedGetaffinity(0, &now); err != nil {
		return err
	}
	if now == want {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return fmt.Errorf("moving to core %d: %w", cpu, err)
	}
	return unix.Exec(exe, slices.Concat(os.Args, more), os.Environ())
}

// ownCPUs returns the first and the last core that this process may use.
func ownCPUs() (first, last int) {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 0, 0
	}
	first = -1
	for i := range 1024 {
		if set.IsSet(i) {
			last = i
			if first < 0 {
				first = i
			}
		}
	}
	return first, last
}

// allCPUs stands for any core, in place of the number of a core.
const allCPUs = -1

// startOn starts cmd on one core, or on all with allCPUs. Its threads inherit that, and Go sets
// GOMAXPROCS by it.
func startOn(cpu int, cmd *exec.Cmd) error {
	var want, was unix.CPUSet
	if cpu == allCPUs {
		for i := range 1024 { // the kernel ignores cores that do not exist
			want.Set(i)
		}
	} else {
		want.Set(cpu)
	}
	// A child process inherits the affinity of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return fmt.Errorf("using core %d: %w", cpu, err)
	}
	err := cmd.Start()
	return errors.Join(err, unix.SchedSetaffinity(0, &was))
}

// checkPinned returns an error if a thread of a process may run on another core than cpu.
func checkPinned(pid, cpu int) error {
	if cpu < 0 {
		return nil
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		var have, want unix.CPUSet
		want.Set(cpu)
		if err := unix.SchedGetaffinity(tid, &have); err == nil && have != want {
			return fmt.Errorf("thread %d of process %d is not bound to core %d only", tid, pid, cpu)
		}
	}
	return nil
}

// Machine describes the machine on which bench has run.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Node   string `json:"node,omitempty"`
	Python string `json:"python,omitempty"`
}

func thisMachine() Machine {
	m := Machine{CPU: "unknown CPU", Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU, m.Cores = parseCPUInfo(b)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return m
}

func (m Machine) String() string {
	s := fmt.Sprintf("%s, %d cores, %s, %s", m.CPU, m.Cores, m.Kernel, m.Go)
	for _, v := range []string{m.Node, m.Python} {
		if v != "" {
			s += ", " + v
		}
	}
	return s
}

func parseCPUInfo(b []byte) (model string, cores int) {
	model = "unknown CPU"
	for line := range bytes.Lines(b) {
		name, value, _ := strings.Cut(string(line), ":")
		switch strings.TrimSpace(name) {
		case "processor":
			cores++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return model, cores
}

// median returns the middle of xs, or the mean of the two in the middle, or 0 if xs is empty.
func median[T ~int64 | ~float64](xs []T) T {
	if len(xs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(xs))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}
