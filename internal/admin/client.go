package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Ask sends a request without a body to the admin listener at addr, which is an address to listen on.
// It returns the text of the answer, or an error with that text if the status is not 200.
func Ask(ctx context.Context, addr, method, target string) (string, error) {
	return ask(ctx, addr, method, target, nil, 64<<10)
}

// ErrUnreachable is wrapped by the errors for a listener that does not answer.
var ErrUnreachable = errors.New("asking the running plusminus")

// ask is Ask with a body. limit bounds the answer in bytes.
func ask(ctx context.Context, addr, method, target string, content io.Reader, limit int64) (string, error) {
	if addr == "" {
		return "", errors.New("-admin is off: no listener to ask")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+Dialable(addr)+target, content)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy in between
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(text)
	}
	return text, nil
}

// Alive reports whether a plusminus answers on the admin address within a second.
func Alive(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	text, err := Ask(ctx, addr, http.MethodGet, "/livez")
	return err == nil && text == "alive"
}

// Folder returns the data folder of the plusminus that answers on the admin address, or "" if its counters are not there. The
// error wraps [ErrUnreachable] if none answers within a second.
func Folder(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	text, err := ask(ctx, addr, http.MethodGet, "/status", nil, 16<<20)
	if err != nil {
		return "", err
	}
	var status struct {
		Store storeStatus `json:"store"`
	}
	err = json.Unmarshal([]byte(text), &status)
	return status.Store.Data, err
}

// Dialable returns an address that reaches a listener on addr from the same machine.
func Dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
