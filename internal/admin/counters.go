package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"plusminus/hub"
)

// Counter is a counter as the admin listener and `plusminus value export` show it: one JSON object in a line.
type Counter struct {
	Name  string    `json:"counter"` // "" is the default counter
	Value hub.Value `json:"value"`
}

const (
	// maxList bounds the counters in one answer; those after the last one follow with another request.
	maxList = 1000

	// maxValueText bounds the text of a value in a request, in bytes. [hub.AppendValue] makes at most 128.
	maxValueText = 256
)

// errMissing is the answer about a counter that is not there.
var errMissing = errors.New("there is no such counter")

// counters answers GET /counters?prefix=P&after=NAME&limit=N with a line for each counter, without the default one.
func (a *Admin) counters(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	limit := maxList
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			http.Error(w, fmt.Sprintf("limit %q is not a number above 0", text), http.StatusBadRequest)
			return
		}
		limit = min(n, maxList)
	}
	list, err := a.cfg.Hub.List(r.Context(), query.Get("prefix"), query.Get("after"), limit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	for _, e := range list {
		_ = lines.Encode(Counter{e.Counter, e.Value}) // an error means that the client has gone
	}
}

// counter answers GET, PUT and DELETE of /counter?name=NAME; without a name, of the default counter.
func (a *Admin) counter(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if name != "" {
		if err := hub.ValidName(name); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	value, err := a.change(r, name)
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/x-ndjson")
		_ = json.NewEncoder(w).Encode(Counter{name, value})
	case errors.Is(err, errMissing):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, hub.ErrRange), errors.Is(err, errBadValue):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, hub.ErrFull), errors.Is(err, hub.ErrOne):
		http.Error(w, err.Error(), http.StatusConflict)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

var errBadValue = errors.New("the body is not a value")

// change does what r asks of the counter, and returns its value afterwards.
func (a *Admin) change(r *http.Request, name string) (value hub.Value, err error) {
	h := a.cfg.Hub
	switch r.Method {
	case http.MethodPut:
		body, err := io.ReadAll(io.LimitReader(r.Body, maxValueText))
		if err != nil {
			return value, err
		}
		v, err := hub.ParseValue(strings.TrimSpace(string(body)))
		if err != nil {
			return value, errors.Join(errBadValue, err)
		}
		snap, err := h.Set(r.Context(), name, v)
		return snap.Value, err
	case http.MethodDelete:
		if err := a.there(r.Context(), name); err != nil {
			return value, err
		}
		return value, h.Remove(r.Context(), name)
	}
	if err := a.there(r.Context(), name); err != nil {
		return value, err
	}
	value, _, ok := h.State(r.Context(), name)
	if !ok {
		return value, errors.New("the value is not known yet")
	}
	return value, nil
}

// there returns errMissing unless the store has the counter called name.
func (a *Admin) there(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	stored, err := a.cfg.Hub.Stored(ctx, name)
	if err == nil && stored.Version == 0 {
		err = errMissing
	}
	return err
}

// List calls f for each counter of the server whose admin listener is at addr, in the order of their names: the default
// counter first, and then those whose names begin with prefix. With a prefix, the default counter is left out.
func List(ctx context.Context, addr, prefix string, f func(Counter) error) error {
	if prefix == "" {
		c, err := askCounter(ctx, addr, http.MethodGet, "", "")
		if err == nil {
			err = f(c)
		}
		if err != nil {
			return err
		}
	}
	for after := ""; ; {
		query := url.Values{"prefix": {prefix}, "after": {after}}
		text, err := ask(ctx, addr, http.MethodGet, "/counters?"+query.Encode(), nil, maxList<<9)
		if err != nil || text == "" {
			return err
		}
		for line := range strings.SplitSeq(text, "\n") {
			var c Counter
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				return fmt.Errorf("the answer of the running plusminus: %w", err)
			}
			if err := f(c); err != nil {
				return err
			}
			after = c.Name
		}
	}
}

// Get, Set and Remove read, set and remove a counter of the server whose admin listener is at addr.
func Get(ctx context.Context, addr, name string) (hub.Value, error) {
	c, err := askCounter(ctx, addr, http.MethodGet, name, "")
	return c.Value, err
}

// Set sets the counter. It returns when that is safe. See [Get].
func Set(ctx context.Context, addr, name string, value hub.Value) error {
	_, err := askCounter(ctx, addr, http.MethodPut, name, string(hub.AppendValue(nil, value)))
	return err
}

// Remove removes the counter. See [Get].
func Remove(ctx context.Context, addr, name string) error {
	_, err := askCounter(ctx, addr, http.MethodDelete, name, "")
	return err
}

func askCounter(ctx context.Context, addr, method, name, body string) (c Counter, err error) {
	target := "/counter"
	if name != "" {
		target += "?" + url.Values{"name": {name}}.Encode()
	}
	text, err := ask(ctx, addr, method, target, bytes.NewReader([]byte(body)), 64<<10)
	if err == nil {
		err = json.Unmarshal([]byte(text), &c)
	}
	return c, err
}
