package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// readmeClients are the example clients of README, by the language of their code block.
var readmeClients = []struct {
	language string
	sends    bool // the client sends a plus
	command  func(t *testing.T, dir, code string) *exec.Cmd
}{
	{"js", true, func(t *testing.T, dir, code string) *exec.Cmd {
		if _, err := exec.LookPath("node"); err != nil {
			t.Skip("Node is not installed (Debian: nodejs)")
		}
		for _, options := range [][]string{nil, {"--experimental-websocket"}} { // Node 22 and later needs no option
			probe := exec.CommandContext(t.Context(), "node", append(options, "-e", "new WebSocket('ws://127.0.0.1:1/').onerror = () => {}")...)
			if probe.Run() == nil {
				return exec.CommandContext(t.Context(), "node", append(options, writeIn(t, dir, "client.js", code))...)
			}
		}
		t.Skip("this Node has no WebSocket; Node 20.10 and later has one")
		return nil
	}},
	{"python", true, func(t *testing.T, dir, code string) *exec.Cmd {
		return exec.CommandContext(t.Context(), pythonWebsockets(t), writeIn(t, dir, "client.py", code))
	}},
	{"go", true, func(t *testing.T, dir, code string) *exec.Cmd {
		if _, err := exec.LookPath("go"); err != nil {
			t.Skip("the go command is not in PATH")
		}
		writeIn(t, dir, "main.go", code)
		mod, err := os.ReadFile("go.mod")
		if err != nil {
			t.Fatal(err)
		}
		library := regexp.MustCompile(`github\.com/coder/websocket v\S+`).Find(mod)
		writeIn(t, dir, "go.mod", "module client\n\ngo 1.26.0\n\nrequire "+string(library)+"\n")
		sum, err := os.ReadFile("go.sum")
		if err != nil {
			t.Fatal(err)
		}
		writeIn(t, dir, "go.sum", string(sum))
		cmd := exec.CommandContext(t.Context(), "go", "run", ".")
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOWORK=off", "GOFLAGS=") // the library is in the module cache
		return cmd
	}},
	{"sh", false, func(t *testing.T, dir, code string) *exec.Cmd {
		if _, err := exec.LookPath("curl"); err != nil {
			t.Skip("curl is not installed (Debian: curl)")
		}
		return exec.CommandContext(t.Context(), "sh", writeIn(t, dir, "client.sh", code))
	}},
}

// writeIn writes a file in dir and returns its path.
func writeIn(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReadmeClients runs the example clients of README. Only the address changes.
func TestReadmeClients(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := make(map[string]string)
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1) {
		blocks[m[1]] += m[2]
	}
	for _, c := range readmeClients {
		code := blocks[c.language]
		delete(blocks, c.language)
		t.Run(c.language, func(t *testing.T) {
			t.Parallel()
			const address = "counter.example.com"
			if strings.Count(code, address) != 1 {
				t.Fatalf("README's client connects to %s %d times, want once:\n%s", address, strings.Count(code, address), code)
			}
			data := t.TempDir()
			s := start(t, "-data", data)
			dir := t.TempDir()
			cmd := c.command(t, dir, strings.ReplaceAll(code, address, "localhost"+portOf(t, s.addrs.HTTPS[0])))
			if cmd.Env == nil {
				cmd.Env = os.Environ()
			}
			root := filepath.Join(data, "local-ca", "root.pem")
			cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+root, "CURL_CA_BUNDLE="+root, "NODE_EXTRA_CA_CERTS="+root)
			cmd.Dir = dir
			cmd.WaitDelay = 10 * time.Second
			var complaints strings.Builder
			cmd.Stderr = &complaints
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.stop(); _ = cmd.Wait() }) // the client ends with its connection, with any exit status
			lines := bufio.NewReader(out)
			wantValue := func(want string) {
				t.Helper()
				for {
					line, err := lines.ReadString('\n')
					if err != nil {
						_, _ = io.Copy(io.Discard, out)
						_ = cmd.Wait()
						t.Fatalf("waiting for the value %s: %v, %q and\n%s", want, err, line, &complaints)
					}
					if strings.TrimSpace(line) == want {
						return
					}
				}
			}
			ws := s.join("wss://localhost/")
			if c.sends {
				wantValue("1")
				send(t, ws, minus)
			}
			wantValue("0")
			send(t, ws, plus)
			send(t, ws, plus)
			wantValue("2")
		})
	}
	for language := range blocks {
		t.Errorf("README has a block of %s, and no test runs it", language)
	}
}
