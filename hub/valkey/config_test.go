package valkey

import (
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url, want      string
		user, password string
	}{
		{"redis://localhost", "redis://localhost:6379/0?prefix=plusminus", "", ""},
		{"redis://10.0.0.1:7000/3?prefix=a.b", "redis://10.0.0.1:7000/3?prefix=a.b", "", ""},
		{"rediss://u:p%2Fw@[::1]/", "rediss://[::1]:6379/0?prefix=plusminus", "u", "p/w"},
		{"valkeys://:pw@host.example:1", "rediss://host.example:1/0?prefix=plusminus", "", "pw"},
	} {
		c, err := ParseURL(tt.url)
		if err != nil || c.String() != tt.want || c.Username != tt.user || c.Password != tt.password {
			t.Errorf("ParseURL(%q) = %s, user %q, password %q, %v, want %s, %q, %q", tt.url, c, c.Username, c.Password, err, tt.want, tt.user, tt.password)
		}
	}
	for _, url := range []string{
		"", "redis:", "redis:host", "redis://", "http://host", "redis://host:0", "redis://host:99999", "redis://host/x", "redis://host/1/2",
		"redis://host/-1", "redis://host?prefx=a", "redis://host?prefix={a}", "redis://host?prefix=a&prefix=b", "redis://host?prefix=",
		"redis://u:secret/x@host", "redis://u:secret%zz@host", "redis://u:secret#x@host", "redis://u:secret@ho st", "redis://:secret", "redis://u:secret?x@host",
	} {
		if c, err := ParseURL(url); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseURL(%q) = %s, %v, want an error without the password", url, c, err)
		}
	}
}
