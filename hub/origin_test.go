package hub

import "testing"

func TestOrigins(t *testing.T) {
	for _, tt := range []struct {
		allowed, origin string
		want            bool
	}{
		{"https://a.example", "https://a.example", true},
		{"https://a.example", "https://A.example", true},
		{"https://a.example", "https://a.example:443", true},
		{"https://a.example:443", "https://a.example", true},
		{"https://a.example/", "https://a.example", true},
		{"https://a.example", "http://a.example", false},
		{"https://a.example", "https://a.example:8443", false},
		{"https://a.example:*", "https://a.example:8443", true},
		{"https://a.example:*", "http://a.example:8443", false},
		{"https://a.example", "https://b.a.example", false},
		{"https://a.example", "https://a.example.evil.example", false},
		{"https://[::1]:*", "https://[::1]:8443", true},
		{"https://a.example", "https://a.example.", true}, // browsers send the dot if a person typed it
		{"https://a.example.", "https://a.example", true},
		{"https://[0:0::1]", "https://[::1]", true},
		{"https://b\u00fccher.example", "https://xn--bcher-kva.example", true},
		{"https://*.a.example", "https://b.a.example", true},
		{"https://*.a.example", "https://c.b.a.example", true},
		{"https://*.a.example", "https://a.example", false},
		{"https://*.a.example", "https://ba.example", false},
		{"https://*.a.example", "http://b.a.example", false},
		{"https://*.a.example", "https://b.a.example:8443", false},
		{"https://*.a.example:*", "https://b.a.example:8443", true},
		{"https://a.example", "https://a.example/", false}, // no browser sends these
		{"https://a.example", "https://u@a.example", false},
		{"https://a.example", "https://a.example#x", false},
		{"https://a.example", "https://a.example https://evil.example", false},
		{"https://a.example", "null", false},
		{"https://a.example", "://", false},
		{"*", "null", true},
		{"null", "null", true},
		{"null", "https://a.example", false},
		{"null", "", false},
		{"null", "://", false},
		// Apps have schemes of their own.
		{"*", "capacitor://localhost", true},
		{"capacitor://localhost", "capacitor://localhost", true},
		{"capacitor://localhost", "https://localhost", false},
		{"https://localhost", "capacitor://localhost", false},
		{"capacitor://localhost", "capacitor://localhost:8080", false},
		{"ionic://localhost:*", "ionic://localhost:8080", true},
		{"tauri://localhost", "tauri://localhost", true},
		{"app://obsidian.md", "app://obsidian.md", true},
		{"app://obsidian.md", "app://obsidian.md.evil.example", false},
		{"app://*.obsidian.md", "app://notes.obsidian.md", true},
		{"chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop", true},
		{"chrome-extension://abcdefghijklmnop", "chrome-extension://ponmlkjihgfedcba", false},
		{"moz-extension://8fc7ee12-5d6f-4b06-9f2d-4b1e8d0f3f35", "moz-extension://8fc7ee12-5d6f-4b06-9f2d-4b1e8d0f3f35", true},
		{"vscode-webview://0a_b", "vscode-webview://0a_b", true}, // no domain name, and not checked as one
		{"app://a.example:443", "app://a.example", false},        // no other scheme has a default port
	} {
		o, err := ParseOrigin(tt.allowed)
		if err != nil {
			t.Errorf("ParseOrigin(%q): %v", tt.allowed, err)
			continue
		}
		h := &Hub{cfg: Config{Origins: []Origin{o}}}
		if got := h.allows(tt.origin); got != tt.want {
			t.Errorf("with the origin %q, allows(%q) = %v, want %v", tt.allowed, tt.origin, got, tt.want)
		}
	}
	for _, s := range []string{"", "a.example", "https://", "capacitor://", "capacitor:", "javascript:alert(1)", "file:///", "://a.example", "ws://a.example", "wss://a.example", "NULL", "null:*", "chrome-extension://*", "app://a.example/x", "app://*.", "https://a.example/x", "https://u@a.example", "https://a.example:1:*", "https://a.example?q", "https://*", "https://a.*.example", "https://a*.example", "https://a b.example"} {
		if o, err := ParseOrigin(s); err == nil {
			t.Errorf("ParseOrigin(%q) = %+v, want an error", s, o)
		}
	}
}

// The text of an origin is that of its shortest form, and parses to the same origin.
func TestOriginString(t *testing.T) {
	for s, want := range map[string]string{
		"*": "*", "null": "null", "https://A.example/": "https://a.example", "https://a.example:443": "https://a.example", "http://a.example:443": "http://a.example:443",
		"https://*.a.example:8443": "https://*.a.example:8443", "https://a.example:*": "https://a.example:*", "https://[2001:DB8::1]:8443": "https://[2001:db8::1]:8443",
		"capacitor://localhost": "capacitor://localhost", "https://bücher.example": "https://xn--bcher-kva.example",
	} {
		o, err := ParseOrigin(s)
		if err != nil || o.String() != want {
			t.Errorf("ParseOrigin(%q) = %v, %v, want %s", s, o, err, want)
		}
		if again, err := ParseOrigin(o.String()); err != nil || again != o {
			t.Errorf("ParseOrigin(%q) = %v, %v, want the same origin again", o, again, err)
		}
	}
}
