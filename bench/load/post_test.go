package load

import (
	"bufio"
	"strings"
	"testing"
)

func TestAnswer(t *testing.T) {
	for _, tt := range []struct {
		name, in     string
		status, body string
		fails        bool
	}{
		{"counted", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"value\":3}\n", "200", `{"value":3}`, false},
		{"refused", "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}", "429", "{}", false},
		{"without a length", "HTTP/1.1 200 OK\r\n\r\n{}", "", "", true},
		{"too long", "HTTP/1.1 200 OK\r\nContent-Length: 513\r\n\r\n" + strings.Repeat("x", 513), "", "", true},
		{"cut off", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", "", "", true},
		{"of another version", "HTTP/2 200\r\nContent-Length: 2\r\n\r\n{}", "", "", true},
	} {
		p := &Poster{in: bufio.NewReader(strings.NewReader(tt.in))}
		status, body, err := p.answer()
		if (err != nil) != tt.fails {
			t.Errorf("%s: answer = %q, %q, %v, want an error: %t", tt.name, status, body, err, tt.fails)
		} else if err == nil && (status != tt.status || string(body) != tt.body) {
			t.Errorf("%s: answer = %q, %q, want %q, %q", tt.name, status, body, tt.status, tt.body)
		}
	}
}
