package valkey

import (
	"container/heap"
	"hash/fnv"
	"strconv"
	"time"

	"plusminus/hub"
)

// buckets is how many buckets the counters are in. All keys of the counters of a bucket are in one hash slot, together with the
// list of their names, so that a script can change a counter and the list at once. A cluster spreads the buckets.
// The number cannot change: it decides where counters are found.
const buckets = 64

// bucketOf returns the bucket of the counter called name.
func bucketOf(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // does not fail
	return int(h.Sum32() % buckets)
}

// The keys of a counter other than the default one begin with "{PREFIX/BUCKET}:NAME:". Neither a prefix nor a name has a slash,
// so they differ from all others.

func (c *Config) bucketKey(bucket int, key string) string {
	return "{" + c.prefix() + "/" + strconv.Itoa(bucket) + "}:" + key
}

// namesKey returns the key of the list of the counters in a bucket: that of no counter, since none there has an empty name.
func (c *Config) namesKey(bucket int) string { return c.bucketKey(bucket, ":"+keyNames) }

// counterKey returns a key of the counter called name.
func (c *Config) counterKey(name, key string) string {
	if name == "" {
		return "{" + c.prefix() + "}:" + key
	}
	return c.bucketKey(bucketOf(name), name+":"+key)
}

// counter is what a Store knows of a counter that its hub watches.
type counter struct {
	// Immutable after newCounter.
	name    string
	keys    []string // for the scripts
	channel string

	// Guarded by Store.mu.
	watched bool         // by the hub; if it is not, the counter is forgotten as soon as the server has its last numbers
	beating bool         // a beat is on its way
	epoch   string       // of the server; "" until the first reply
	now     hub.Snapshot // the newest known
	own     uint64       // the newest version that ApplyAll has returned in this epoch
	foreign hub.Snapshot // the newest that another hub has made

	users     int    // the clients of all hubs
	usersSeq  uint64 // the version of users
	clients   int    // of this hub, as Announce was told
	announced int    // of this hub, as the server has it

	published        uint64 // the newest version that a message was sent about
	publishedUsers   uint64 // the newest usersSeq that a message was sent about
	unpublished      uint64 // the version that needs a message at flushAt
	unpublishedUsers uint64 // the usersSeq that needs a message at flushAt
	flushAt          time.Time

	damaged bool // the last beat has said so

	reread bool      // a message has named an unknown epoch: beat soon
	beatAt time.Time // the time of the last beat
	dueAt  time.Time // the time of the next beat
	due    int       // the index in Store.due; -1 if it is not there

	// The place in the news that the hub has not received, if newsOf is the number of those news.
	newsOf uint64
	newsAt int
}

func newCounter(cfg *Config, name string) *counter {
	c := &counter{name: name, watched: true, due: -1}
	for _, key := range []string{keyCounter, keyBatches, keySeen, keyClients, keyAlive} {
		c.keys = append(c.keys, cfg.counterKey(name, key))
	}
	channel := "news."
	if name != "" {
		c.keys = append(c.keys, cfg.namesKey(bucketOf(name)))
		channel = "counters."
	}
	c.channel = cfg.counterKey("", channel+strconv.Itoa(cfg.DB))
	return c
}

// reports returns the number of clients that the next beat reports.
func (c *counter) reports() int {
	if c.clients == 0 && c.name != "" {
		return -1 // so that an idle counter leaves nothing on the server; hubs are counted by the default one
	}
	return c.clients
}

// idle reports whether the Store can forget c.
func (c *counter) idle() bool {
	return !c.watched && !c.beating && c.announced == 0 && c.clients == 0 && !c.mustPublish()
}

// mustPublish reports whether no hub has sent a message yet about a change of this hub.
func (c *counter) mustPublish() bool {
	return c.unpublished > c.published || c.unpublishedUsers > c.publishedUsers
}

// Watch implements [hub.SharedCounters].
func (s *Store) Watch(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counters[name]
	if c == nil {
		c = newCounter(&s.cfg, name)
		c.now.Epoch = s.forgotten
		s.counters[name] = c
	}
	c.watched = true
	if c.epoch != "" { // the hub has forgotten what it knew
		c.foreign = c.now
		s.sendNewsLocked(c)
	}
	s.scheduleLocked(c)
}

// Unwatch implements [hub.SharedCounters].
func (s *Store) Unwatch(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counters[name]; c != nil {
		c.watched, c.clients = false, 0
		s.scheduleLocked(c)
	}
}

// Announce implements [hub.Shared]. The other hubs hear of it within 100 ms, or 3 ms for
// each hub if that is more.
func (s *Store) Announce(name string, clients int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counters[name]; c != nil && c.clients != clients {
		c.clients = clients
		s.scheduleLocked(c)
	}
}

// intervalLocked returns the longest time between two beats of c.
func (s *Store) intervalLocked(c *counter) time.Duration {
	if c.name == "" {
		return beatEvery
	}
	return min(max(beatEvery, time.Duration(len(s.counters)*s.hubs)*beatPerCounter), longestBeat)
}

// scheduleLocked forgets c if it is idle. Otherwise it decides when the next beat is.
func (s *Store) scheduleLocked(c *counter) {
	if c.beating {
		return // the end of the beat does it
	}
	if c.idle() {
		if c.due >= 0 {
			heap.Remove(&s.due, c.due)
		}
		delete(s.counters, c.name)
		s.forgotten = max(s.forgotten, c.now.Epoch)
		return
	}
	at := c.beatAt.Add(s.intervalLocked(c))
	sooner := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if c.clients != c.announced {
		sooner(c.beatAt.Add(max(announceEvery, time.Duration(s.hubs)*announcePerHub)))
	}
	if c.mustPublish() {
		sooner(c.flushAt)
	}
	if c.reread {
		sooner(c.beatAt.Add(announceEvery))
	}
	c.dueAt = at
	if c.due >= 0 {
		heap.Fix(&s.due, c.due)
	} else {
		heap.Push(&s.due, c)
	}
	if c.due == 0 {
		s.wakeRun()
	}
}

// schedule is a heap of counters by the time of their next beat.
type schedule []*counter

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (q schedule) Len() int           { return len(q) }
func (q schedule) Less(i, j int) bool { return q[i].dueAt.Before(q[j].dueAt) }
func (q schedule) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].due, q[j].due = i, j
}

func (q *schedule) Push(x any) {
	c := x.(*counter)
	c.due = len(*q)
	*q = append(*q, c)
}

func (q *schedule) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.due = -1
	return c
}
