package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plusminus/bench/load"
)

const (
	slowClients = 2000 // in all
	slowStuck   = slowClients / 10
	slowResumed = 20 // of those, that read again

	// slowWatch is how long the stuck ones are given to be disconnected.
	slowWatch = 45 * time.Second
)

func slow(ctx context.Context, b *bench, p peer) error {
	s, err := b.lab.start(ctx, p, false)
	if err != nil {
		return err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	acting, err := cr.ConnectActors(ctx, actors)
	if err != nil {
		return err
	}
	b.say("%d clients arrive", slowClients)
	if _, err := cr.Connect(ctx, slowClients-slowStuck-actors, parallel, false); err != nil {
		return err
	}
	stuck, err := cr.Connect(ctx, slowStuck, parallel, true)
	if err != nil {
		return err
	}
	if err := quiet(ctx, s, 15*time.Second); err != nil {
		return err
	}
	before, err := rounds(ctx, cr, acting[0], 40)
	if err != nil {
		return err
	}
	v := values{"before_ms": ms(median(before))}

	b.say("%d of them stop reading", slowStuck)
	files, err := openFiles(s.pid)
	if err != nil {
		return err
	}
	for _, c := range stuck {
		if err := c.Pause(); err != nil {
			return err
		}
	}
	standsStill := func(why string) error {
		b.record(slowClients, v, "the others wait for the stuck ones: "+why)
		return nil
	}
	full, why, err := fill(ctx, b, s, cr, acting)
	if err != nil {
		return err
	}
	if why != "" {
		return standsStill(why)
	}
	note := ""
	if time.Since(full) < fullAfter {
		note = fmt.Sprintf("the sockets still took more after %.0f s", fillFor.Seconds())
	}
	during, err := rounds(ctx, cr, acting[0], 40)
	if err != nil {
		return standsStill(brief(err))
	}
	v["during_ms"] = ms(median(during))
	v["slowdown"] = v["during_ms"] / v["before_ms"]

	v["newest"], v["newest_ms"] = resume(ctx, stuck[:slowResumed], acting[0].Value())

	// Values keep coming, which is how most servers find out.
	stuckStill := float64(slowStuck - slowResumed)
	v["closed"] = 0
	for time.Since(full) < slowWatch && ctx.Err() == nil {
		if why := changes(ctx, cr, acting); why != "" {
			return standsStill(why)
		}
		now, err := openFiles(s.pid)
		if err != nil {
			return err
		}
		if closed := min(float64(files-now), stuckStill); closed > v["closed"] {
			v["closed"], v["closed_s"] = closed, time.Since(full).Seconds()
		}
		if v["closed"] == stuckStill {
			break
		}
	}
	all, slow := cr.Lost()
	v["lost"] = float64(all - slow)
	b.record(slowClients, v, note)
	return nil
}

// changes makes values come for a second, and returns why not all got the last, or "".
func changes(ctx context.Context, cr *load.Crowd, acting []*load.Client) string {
	r, err := cr.Flood(ctx, acting, 0)
	switch {
	case err != nil:
		return brief(err)
	case r.Lost > 0:
		return fmt.Sprintf("%d of them were disconnected", r.Lost)
	case !r.Converged:
		return fmt.Sprintf("%d had not got the value after %.0f s", r.Behind, load.ConvergeTimeout.Seconds())
	}
	return ""
}

const (
	// fillFor bounds how long it may take until the stuck clients' sockets are full.
	fillFor = 40 * time.Second

	// fullAfter is how long they must have taken nothing to be called full.
	fullAfter = 1500 * time.Millisecond
)

// fill makes values come until the sockets of the stuck clients take no more, and returns
// since when that is so, or else why the others are not served.
func fill(ctx context.Context, b *bench, s *server, cr *load.Crowd, acting []*load.Client) (time.Time, string, error) {
	var full time.Time
	var most int64
	for began := time.Now(); ; {
		if why := changes(ctx, cr, acting); why != "" {
			return full, why, nil
		}
		queued, n, err := sendQueues(s.addr)
		switch {
		case err != nil:
			return full, "", err
		case queued > most+most/50:
			most, full = queued, time.Now()
		case most > 0 && time.Since(full) >= fullAfter:
			b.say("%d sockets are full, with %d KB", n, most>>10)
			return full, "", nil
		}
		if time.Since(began) > fillFor {
			b.say("the sockets are not full after %v, with %d KB", fillFor, most>>10)
			return full, "", nil
		}
	}
}

// resume has clients read again, and returns how many came to the value, and how long
// the last of them took.
func resume(ctx context.Context, clients []*load.Client, value int64) (n, took float64) {
	began := time.Now()
	for _, c := range clients {
		if c.Resume() != nil {
			return 0, 0
		}
	}
	for time.Since(began) < 5*time.Second && ctx.Err() == nil {
		was := n
		n = 0
		for _, c := range clients {
			if c.Value() == value {
				n++
			}
		}
		if n > was {
			took = ms(time.Since(began))
		}
		if int(n) == len(clients) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return n, took
}

const (
	soakHonest  = 500
	soakHostile = 500
)

// tick is one look at a server that is soaking.
type tick struct {
	rss   float64 // MB
	files int
	last  time.Duration
}

func soak(ctx context.Context, b *bench, p peer) error {
	s, err := b.lab.start(ctx, p, false)
	if err != nil {
		return err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	acting, err := cr.ConnectActors(ctx, 1)
	if err != nil {
		return err
	}
	honest, err := cr.Connect(ctx, soakHonest-1, parallel, false)
	if err != nil {
		return err
	}

	soakCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var hostile atomic.Int64
	defer wg.Wait()
	defer cancel()
	for i := range soakHostile {
		wg.Go(func() {
			for soakCtx.Err() == nil {
				hostile.Add(1)
				_ = cr.Misbehave(soakCtx, load.Misdeed(i)%load.Misdeeds) // to be refused is their lot
				if sleep(soakCtx, time.Second) != nil {
					return
				}
			}
		})
	}

	var ticks []tick
	churn := max(1, soakHonest/100)
	note := ""
	for began := time.Now(); time.Since(began) < b.soakFor && note == ""; {
		times, err := rounds(ctx, cr, acting[0], 8)
		if err != nil {
			note = "the honest ones were not served: " + brief(err)
			break
		}
		if err := cr.Leave(ctx, honest[:churn]...); err != nil {
			return err
		}
		fresh, err := cr.Connect(ctx, churn, churn, false)
		if err != nil {
			note = "newcomers were not served: " + brief(err)
			break
		}
		honest = append(honest[churn:], fresh...)
		memory, err := rss(s.pid)
		if err != nil {
			return err
		}
		files, err := openFiles(s.pid)
		if err != nil {
			return err
		}
		ticks = append(ticks, tick{float64(memory) / (1 << 20), files, slices.Max(times)})
		if len(ticks)%30 == 0 {
			t := ticks[len(ticks)-1]
			b.say("after %.0f s: RSS %.1f MB, %d open files, last client %.1f ms", time.Since(began).Seconds(), t.rss, t.files, ms(t.last))
		}
		if err := sleep(ctx, time.Until(began.Add(time.Duration(len(ticks))*time.Second))); err != nil {
			return err
		}
	}
	v := values{"hostile": float64(hostile.Load())}
	all, slow := cr.Lost()
	v["lost"] = float64(all - slow)
	if len(ticks) > 0 {
		// In the first tenth the hostile ones are still arriving.
		tenth := max(1, len(ticks)/10)
		start, end := ticks[min(tenth, len(ticks)-tenth):][:tenth], ticks[len(ticks)-tenth:]
		v["rss_start_mb"], v["last_start_ms"] = typical(start)
		v["rss_end_mb"], v["last_end_ms"] = typical(end)
		for _, t := range ticks {
			v["rss_max_mb"], v["fds_max"] = max(v["rss_max_mb"], t.rss), max(v["fds_max"], float64(t.files))
		}
	}
	b.record(soakHonest+soakHostile, v, note)
	return nil
}

// typical returns the median memory and the median of the last clients' times.
func typical(ticks []tick) (rssMB, lastMS float64) {
	var memory []float64
	var last []time.Duration
	for _, t := range ticks {
		memory, last = append(memory, t.rss), append(last, t.last)
	}
	return median(memory), ms(median(last))
}
