package admin

import (
	"context"
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
	if addr == "" {
		return "", errors.New("-admin is off: no listener to ask")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+Dialable(addr)+target, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy in between
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("asking the running plusminus: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", fmt.Errorf("asking the running plusminus: %w", err)
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
