package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/coder/websocket"
)

const vectorsFile = "hub/testdata/vectors.json"

// vectors are recorded conversations of the tutorial's server. See "about" in the file.
type vectors struct {
	Conversations []struct {
		Name  string
		Steps []struct {
			Client, Do, Text string
			Then             map[string][]json.RawMessage
		}
	}
}

// TestVectors replays each conversation over wss. The answers differ from the recording for refused messages only. The
// sender receives an error, where the tutorial's server ignores an unknown action. The sender stays connected, where
// the tutorial's server closes with 1011 after a message that is not JSON.
func TestVectors(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Conversations) == 0 {
		t.Fatal("no conversations")
	}
	for _, conversation := range v.Conversations {
		t.Run(conversation.Name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "-store", "memory")
			clients := map[string]*websocket.Conn{}
			var stayed []string // clients that the tutorial's server has closed by now
			for i, step := range conversation.Steps {
				refused := ""
				switch step.Do {
				case "connect":
					clients[step.Client] = s.join("wss://localhost/")
				case "send":
					send(t, clients[step.Client], step.Text)
					if len(step.Then) == 0 {
						refused = `{"code":"unknown_action","type":"error"}`
					}
				case "close":
					clients[step.Client].Close(websocket.StatusNormalClosure, "")
					delete(clients, step.Client)
				default:
					t.Fatalf("step %d: unknown kind %q", i, step.Do)
				}

				if got := step.Then[step.Client]; len(got) == 1 && canonical(t, got[0]) == `{"closed":1011}` {
					refused = `{"code":"bad_message","type":"error"}`
					stayed = append(stayed, step.Client)
					step.Then = nil // in the recording the other clients see it leave
				}
				if refused != "" {
					wantRead(t, clients[step.Client], refused)
				}
				for name, ws := range clients {
					then := step.Then[name]
					if slices.Contains(stayed, name) {
						then = step.Then[step.Client] // all clients receive the same
					}
					for _, want := range then {
						wantRead(t, ws, canonical(t, want))
					}
				}
			}
			// A message too many would come before the answer to this one.
			for _, ws := range clients {
				send(t, ws, `{"action":"end"}`)
				wantRead(t, ws, `{"code":"unknown_action","type":"error"}`)
			}
		})
	}
}

// TestVectorsAreCurrent compares the copy of the recording with the original, if that is beside the repository.
func TestVectorsAreCurrent(t *testing.T) {
	t.Parallel()
	theirs, err := os.ReadFile("../shared/protocol/vectors.json")
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours, theirs) {
		t.Errorf("%s differs from ../shared/protocol/vectors.json: copy it", vectorsFile)
	}
}
