package main

import (
	"context"
	"fmt"
	"time"

	"plusminus/bench/load"
)

// manyFlags make plusminus hold any number of counters. Clients have the addresses that the load states in X-Forwarded-For,
// since one address makes ten counters a minute.
var manyFlags = []string{"-counters", "*", "-max-counters", "0", "-trusted-proxies", "127.0.0.0/8"}

// floodBatch is the size of batches in the second flood of counters. It is fixed, since the size to which Flood adapts
// depends on how long a sweep takes, and that on the number of counters.
const floodBatch = 64

// counters floods each number of counters with as many clients, beginning with one counter for all of them.
func counters(ctx context.Context, b *bench, p peer) error {
	if !p.plusminus {
		b.say("left out: it has one counter")
		return nil
	}
	for _, n := range b.clients {
		var one values
		for _, k := range []int{1, n / 10, n} {
			if k == 1 && one != nil || k == 0 {
				continue // fewer than 20 clients
			}
			v, note, err := floodCounters(ctx, b, p, n, k)
			if err != nil {
				return err
			}
			if k == 1 {
				one = v
			} else {
				v.compare(one, "rate", "rate_one")
				v.compare(one, "cpu_us", "cpu_one")
				v.compare(one, "batch_rate", "batch_one")
			}
			b.recordCounters(n, k, v, note)
		}
	}
	return nil
}

// compare sets key to the ratio of v[of] to one[of].
func (v values) compare(one values, of, key string) {
	if one[of] > 0 {
		v[key] = v[of] / one[of]
	}
}

// floodCounters starts a server with k counters and floods them twice with n clients, all of which act: with single
// actions, and with batches of them.
func floodCounters(ctx context.Context, b *bench, p peer, n, k int) (v values, note string, err error) {
	s, err := b.env.start(ctx, p, false, manyFlags...)
	if err != nil {
		return nil, "", err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return nil, "", err
	}
	defer cr.Abandon()
	b.say("%d clients arrive at %d counters", n, k)
	acting, err := cr.ConnectActorsTo(ctx, cr.Counters(k), n, parallel)
	if err != nil {
		return nil, "", err
	}
	if err := quiet(ctx, s, 15*time.Second); err != nil {
		return nil, "", err
	}
	before := cr.Messages()
	m, err := newMeter(s.pid)
	if err != nil {
		return nil, "", err
	}
	r, err := cr.Flood(ctx, acting, 1, b.flood)
	if err != nil {
		return nil, "", err
	}
	cpu, busy, err := m.stop()
	if err != nil {
		return nil, "", err
	}
	messages := float64(cr.Messages() - before)
	v = values{
		"rate":     r.Rate,
		"messages": messages / time.Since(m.at).Seconds(),
		"cpu_us":   float64(cpu) / float64(time.Microsecond) / messages,
		"load_pct": busy,
	}
	if note = floodNote(r); note != "" {
		return v, note, nil
	}
	if r, err = cr.Flood(ctx, acting, floodBatch, b.flood); err != nil {
		return nil, "", err
	}
	v["batch_rate"] = r.Rate
	return v, floodNote(r), nil
}

// postConnections is how many keep-alive connections act in posts.
const postConnections = 100

// posts acts by POST on one counter, and then on each number of counters. No client watches them.
func posts(ctx context.Context, b *bench, p peer) error {
	if !p.plusminus {
		b.say("left out: it has no POST")
		return nil
	}
	var one values
	for _, k := range append([]int{1}, b.clients...) {
		v, err := post(ctx, b, p, k)
		if err != nil {
			return err
		}
		if k == 1 {
			one = v
		} else {
			v.compare(one, "rate", "rate_one")
			v.compare(one, "cpu_us", "cpu_one")
		}
		b.recordCounters(postConnections, k, v, "")
	}
	return nil
}

// post starts a server with k counters, and acts on them by POST.
func post(ctx context.Context, b *bench, p peer, k int) (values, error) {
	s, err := b.env.start(ctx, p, false, manyFlags...)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return nil, err
	}
	defer cr.Abandon()
	posters, err := cr.ConnectPosters(ctx, postConnections)
	if err != nil {
		return nil, err
	}
	defer load.ClosePosters(posters)
	list := cr.Counters(k)
	b.say("making %d counters", k)
	if err := load.Make(ctx, posters, list); err != nil {
		return nil, fmt.Errorf("making the counters: %w", err)
	}
	m, err := newMeter(s.pid)
	if err != nil {
		return nil, err
	}
	actions, err := load.Post(ctx, posters, list, b.flood)
	if err != nil {
		return nil, err
	}
	took := time.Since(m.at)
	cpu, busy, err := m.stop()
	if err != nil {
		return nil, err
	}
	memory, err := rss(s.pid)
	if err != nil {
		return nil, err
	}
	return values{
		"rate":     float64(actions) / took.Seconds(),
		"cpu_us":   float64(cpu) / float64(time.Microsecond) / float64(actions),
		"rss_mb":   float64(memory) / (1 << 20),
		"load_pct": busy,
	}, nil
}
