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
	slowClients = 2000 // all clients
	slowStuck   = slowClients / 10
	slowResumed = 20 // stuck clients that read again

	// slowWatch is how long the server has to disconnect the stuck clients.
	slowWatch = 45 * time.Second
)

func slow(ctx context.Context, b *bench, p peer) error {
	s, err := b.env.start(ctx, p, false)
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
		b.record(slowClients, v, "the other clients wait for the stuck ones: "+why)
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
		note = fmt.Sprintf("the sockets were not full after %.0f s", fillFor.Seconds())
	}
	during, err := rounds(ctx, cr, acting[0], 40)
	if err != nil {
		return standsStill(brief(err))
	}
	v["during_ms"] = ms(median(during))
	v["slowdown"] = v["during_ms"] / v["before_ms"]

	v["newest"], v["newest_ms"] = resume(ctx, stuck[:slowResumed], acting[0].Value())

	// The values keep changing: most servers notice a stuck client only when they write.
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

// changes changes the value for a second, and returns "", or why not all clients got the final value.
func changes(ctx context.Context, cr *load.Crowd, acting []*load.Client) string {
	r, err := cr.Flood(ctx, acting, 0, 0)
	switch {
	case err != nil:
		return brief(err)
	case r.Lost > 0:
		return fmt.Sprintf("the server disconnected %d of them", r.Lost)
	case !r.Converged:
		return fmt.Sprintf("%d did not have the value after %.0f s", r.Behind, load.ConvergeTimeout.Seconds())
	}
	return ""
}

const (
	// fillFor bounds the time until the stuck clients' sockets are full.
	fillFor = 40 * time.Second

	// fullAfter is how long the sockets must take no more data to count as full.
	fullAfter = 1500 * time.Millisecond
)

// fill changes the value until the sockets of the stuck clients take no more data. It returns
// the time since which they are full, or why the server does not serve the other clients.
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
			b.say("%d sockets are full and hold %d KB", n, most>>10)
			return full, "", nil
		}
		if time.Since(began) > fillFor {
			b.say("the sockets are not full after %v, and hold %d KB", fillFor, most>>10)
			return full, "", nil
		}
	}
}

// resume makes clients read again. It returns how many of them get the value within 5 s, and
// the time until the last of them has it, in milliseconds.
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

// tick is one measurement during soak.
type tick struct {
	rss   float64 // MB
	files int
	last  time.Duration // the longest of the rounds
}

func soak(ctx context.Context, b *bench, p peer) error {
	s, err := b.env.start(ctx, p, false)
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
				_ = cr.Misbehave(soakCtx, load.Misdeed(i)%load.Misdeeds) // the server may refuse them
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
			note = "honest clients were not served: " + brief(err)
			break
		}
		if err := cr.Leave(ctx, honest[:churn]...); err != nil {
			return err
		}
		fresh, err := cr.Connect(ctx, churn, churn, false)
		if err != nil {
			note = "new clients were not served: " + brief(err)
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
		// In the first tenth, hostile clients are still arriving.
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

// typical returns the medians of rss and of last.
func typical(ticks []tick) (rssMB, lastMS float64) {
	var memory []float64
	var last []time.Duration
	for _, t := range ticks {
		memory, last = append(memory, t.rss), append(last, t.last)
	}
	return median(memory), ms(median(last))
}
