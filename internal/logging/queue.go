package logging

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	// maxQueued bounds the lines that wait to be written, in bytes. It holds about 5,000 lines: a
	// reader that pauses for a moment loses none.
	maxQueued = 1 << 20

	// maxWrite bounds one write, in bytes: what a pipe holds on Linux. The other lines stay in the
	// queue, where those of a higher level can still take their place.
	maxWrite = 64 << 10

	// flushTimeout bounds how long Close waits for the writer.
	flushTimeout = time.Second
)

// A Queue carries log lines to a writer that may block for ever, such as a pipe that nobody reads.
// To log never waits for the writer: a line waits in the queue, or is dropped and counted. When the
// queue is full, lines of the lowest level are dropped first, the newest of them before older ones.
// Once the writer takes lines again, a line says how many were lost.
//
// Its methods are safe from any goroutine. Its goroutine is run, which Close ends.
type Queue struct {
	// Immutable after newQueue.
	w       io.Writer
	handler func(io.Writer) slog.Handler // makes the lines of the queue's own
	wake    chan struct{}                // add -> run; 1, a token is enough; never closed
	ended   chan struct{}                // closed by run

	mu sync.Mutex
	// Guarded by mu.
	lines  []line
	size   int    // bytes in lines
	lost   uint64 // lines since the start
	untold uint64 // lost lines that no line has told of
	closed bool
}

// line is one line of the log, with its newline.
type line struct {
	level slog.Level
	text  []byte
}

// newQueue returns a queue in front of w, and starts its goroutine.
func newQueue(w io.Writer, handler func(io.Writer) slog.Handler) *Queue {
	q := &Queue{w: w, handler: handler, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go q.run()
	return q
}

// Lost returns how many lines have been lost since the start.
func (q *Queue) Lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// Close writes the lines that wait, for at most flushTimeout. Lines that are added later are lost.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	select {
	case <-q.ended:
	case <-time.After(flushTimeout):
	}
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// add puts a line into the queue, which keeps text.
func (q *Queue) add(level slog.Level, text []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || !q.makeRoomLocked(level, len(text)) {
		q.loseLocked()
		return
	}
	q.lines = append(q.lines, line{level, text})
	q.size += len(text)
	q.signal()
}

// makeRoomLocked drops lines of lower levels until n more bytes fit, and reports whether they do.
func (q *Queue) makeRoomLocked(level slog.Level, n int) bool {
	for q.size+n > maxQueued {
		lowest := -1
		for i, l := range q.lines {
			if l.level < level && (lowest < 0 || l.level <= q.lines[lowest].level) {
				lowest = i
			}
		}
		if lowest < 0 {
			return false
		}
		q.size -= len(q.lines[lowest].text)
		q.lines = slices.Delete(q.lines, lowest, lowest+1)
		q.loseLocked()
	}
	return true
}

func (q *Queue) loseLocked() {
	q.lost++
	q.untold++
}

// take returns lines that wait, up to maxWrite, and whether the queue was closed. If lines were lost,
// the last line says how many.
func (q *Queue) take() (text []byte, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.lines) && (n == 0 || len(text)+len(q.lines[n].text) <= maxWrite) {
		text = append(text, q.lines[n].text...)
		n++
	}
	q.lines = slices.Delete(q.lines, 0, n)
	q.size -= len(text)
	if q.untold > 0 && len(q.lines) == 0 {
		var b bytes.Buffer
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines lost: they were not read in time", 0)
		r.AddAttrs(slog.Uint64("n", q.untold))
		_ = q.handler(&b).Handle(context.Background(), r) // a bytes.Buffer takes all
		text = append(text, b.Bytes()...)
		q.untold = 0
	}
	return text, q.closed
}

// run writes the lines, in order, until the queue is closed.
func (q *Queue) run() {
	defer close(q.ended)
	for range q.wake {
		for {
			text, closed := q.take()
			if len(text) == 0 {
				if closed {
					return
				}
				break
			}
			if _, err := q.w.Write(text); err != nil {
				// The reader has ended (EPIPE), or the disk is full. These lines are lost, and the
				// server serves on.
				q.mu.Lock()
				q.lost += uint64(bytes.Count(text, []byte("\n")))
				q.mu.Unlock()
			}
		}
	}
}

// queueHandler formats each record with inner, which writes into buf, and puts the line into a queue.
type queueHandler struct {
	inner slog.Handler
	buf   *lockedBuffer // shared by all handlers that WithAttrs and WithGroup derive
	queue *Queue
}

// lockedBuffer holds one line while it is formatted.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func newQueueHandler(q *Queue, handler func(io.Writer) slog.Handler) slog.Handler {
	buf := new(lockedBuffer)
	return &queueHandler{inner: handler(buf), buf: buf, queue: q}
}

// Enabled implements [slog.Handler].
func (h *queueHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (h *queueHandler) Handle(ctx context.Context, r slog.Record) error {
	h.buf.mu.Lock()
	h.buf.Reset()
	err := h.inner.Handle(ctx, r)
	text := bytes.Clone(h.buf.Bytes())
	h.buf.mu.Unlock()
	if err == nil {
		h.queue.add(r.Level, text)
	}
	return err
}

// WithAttrs implements [slog.Handler].
func (h *queueHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &queueHandler{h.inner.WithAttrs(attrs), h.buf, h.queue}
}

// WithGroup implements [slog.Handler].
func (h *queueHandler) WithGroup(name string) slog.Handler {
	return &queueHandler{h.inner.WithGroup(name), h.buf, h.queue}
}
