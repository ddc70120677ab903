package server

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"plusminus/hub"
)

// A badge of a value that is not known says so. Its query is checked all the same.
func TestBadgeUnknown(t *testing.T) {
	h, err := hub.New(t.Context(), hub.Config{Store: silent{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Shutdown(t.Context()) }()
	for query, want := range map[string]int{"": 503, "label=Likes": 503, "color=mud": 400} {
		r := httptest.NewRequest("GET", "/badge.svg?"+query, nil)
		w := httptest.NewRecorder()
		(&routes{hub: h}).badge(w, r, "")
		if w.Code != want {
			t.Errorf("?%s = %d %s, want %d", query, w.Code, w.Body, want)
		}
		if want == 503 {
			if !strings.Contains(w.Body.String(), ">unknown</text>") || w.Header().Get("Retry-After") != "10" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("ETag") != "" {
				t.Errorf("?%s shows %s with %v, want unknown, Retry-After and no copy", query, w.Body, w.Header())
			}
		}
	}
	w := httptest.NewRecorder()
	(&routes{hub: h}).history(w, httptest.NewRequest("GET", "/history", nil), "")
	if w.Code != 503 || w.Header().Get("Retry-After") != "10" {
		t.Errorf("GET /history = %d, want 503 and Retry-After", w.Code)
	}
}

// TestBadgePage compares docs/embed.md with how long browsers keep a badge.
func TestBadgePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/embed.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	if want := fmt.Sprintf("for %d seconds", badgeAge); !strings.Contains(text, want) {
		t.Errorf("docs/embed.md does not say %q", want)
	}
}

// silent is a shared store that cannot be reached.
type silent struct{ hub.Shared }

func (silent) Load(context.Context) (hub.Snapshot, error) {
	return hub.Snapshot{}, errors.New("no answer")
}
func (silent) News() <-chan hub.News  { return nil }
func (silent) Announce(string, int)   {}
func (silent) Pace(int) time.Duration { return 0 }
