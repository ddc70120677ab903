package main

import (
	"testing"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for s, want := range map[string]time.Time{
		"3":                             now.Add(3 * time.Second),
		"Fri, 02 Jan 2026 03:04:08 GMT": time.Date(2026, 1, 2, 3, 4, 8, 0, time.UTC),
	} {
		if got, ok := parseRetryAfter(s, now); !ok || !got.Equal(want) {
			t.Errorf("parseRetryAfter(%q) = %v, %t, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "soon"} {
		if got, ok := parseRetryAfter(s, now); ok {
			t.Errorf("parseRetryAfter(%q) = %v, want none", s, got)
		}
	}
}

func TestObject(t *testing.T) {
	for p, want := range map[string]string{
		"/my-order/abc":        "order abc",
		"/finalize-order/abc":  "order abc",
		"/authZ/abc":           "authorization abc",
		"/chalZ/abc":           "",
		"/order-plz":           "",
		"/draft/renewalInfo/x": "",
	} {
		if got := object(p); got != want {
			t.Errorf("object(%q) = %q, want %q", p, got, want)
		}
	}
}

func TestMet(t *testing.T) {
	given := time.Now()
	w := wish{given, given.Add(time.Second)}
	var a Asked
	a.met(w, given.Add(time.Second))
	if want := (Asked{Wishes: 1, Wait: time.Second}); a != want {
		t.Errorf("after a client in time: %+v, want %+v", a, want)
	}
	a.met(w, given.Add(time.Second-1))
	a.met(w, given.Add(time.Hour))
	if want := (Asked{Wishes: 3, TooSoon: 1, Wait: time.Second - 1}); a != want {
		t.Errorf("after one more too soon and one late: %+v, want %+v", a, want)
	}
}
