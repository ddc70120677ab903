package e2e

import (
	"os/exec"
	"testing"
)

// pythonClient is a client like that of the tutorial of the websockets library.
const pythonClient = `
import asyncio, json, ssl, sys, websockets

async def main(url, root):
    trust = ssl.create_default_context(cafile=root)
    async with websockets.connect(url, ssl=trust) as a, websockets.connect(url, ssl=trust) as b:
        async def until(ws, want):
            async for message in ws:
                if json.loads(message) == want:
                    return
            sys.exit(f"closed before {want}")
        await until(a, {"type": "users", "count": 2})
        for action, value in [("plus", 1), ("plus", 2), ("minus", 1)]:
            await a.send(json.dumps({"action": action}))
            await until(a, {"type": "state", "value": value})
            await until(b, {"type": "state", "value": value})
        pong = await a.ping()
        await pong
        await a.send("x" * 513)
        try:
            while True:
                await a.recv()
        except websockets.ConnectionClosed as e:
            print("closed with", e.code)
        await until(b, {"type": "users", "count": 1})
        print("counted")

asyncio.run(main(*sys.argv[1:]))
`

// pythonWebsockets returns the name of a Python that has the websockets library, or skips the test.
func pythonWebsockets(t *testing.T) string {
	t.Helper()
	// Debian's package belongs to Debian's Python, which may not be the first one in PATH.
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), name, "-c", "import websockets").Run() == nil {
			return name
		}
	}
	t.Skip("Python with websockets is not installed (Debian: python3-websockets)")
	return ""
}

// TestPythonWebsockets counts with two clients in Python, and sends a message that is too big.
func TestPythonWebsockets(t *testing.T) {
	t.Parallel()
	python := pythonWebsockets(t)
	data := t.TempDir()
	s := start(t, "-data", data)
	url := "wss://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"
	out, err := exec.CommandContext(t.Context(), python, "-c", pythonClient, url, data+"/local-ca/root.pem").CombinedOutput()
	if want := "closed with 1009\ncounted\n"; err != nil || string(out) != want {
		t.Errorf("%v, output\n%s\nwant\n%s", err, out, want)
	}
}
