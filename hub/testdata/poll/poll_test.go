package hub

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
)

// collect reads ws. It returns a function that returns the messages received since that function's last call.
func collect(ws *websocket.Conn) func() string {
	got := make(chan string, 1000)
	go func() {
		for {
			_, data, err := ws.Read(context.Background())
			if err != nil {
				return
			}
			got <- string(data)
		}
	}()
	return func() string {
		synctest.Wait()
		var all []string
		for len(got) > 0 {
			all = append(all, <-got)
		}
		return strings.Join(all, " ")
	}
}

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(Memory)
		if _, err := store.Apply(t.Context(), Delta{0, 0, MaxValue - 2}); err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Store: store, Shards: 1})
		defer h.stop()
		ws, _ := h.dial()
		defer ws.CloseNow()
		take := collect(ws)
		want := func(want ...string) {
			t.Helper()
			if got := take(); got != strings.Join(want, " ") {
				t.Errorf("received %s, want %s", got, want)
			}
		}
		send := func(texts ...string) {
			t.Helper()
			for _, text := range texts {
				if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		state := func(votes string) string { return `{"type":"state","value":` + votes + `}` }

		want(`{"type":"users","count":1}`, state("[0,0,9007199254740989]"))
		send(`{"action":"vote","option":"tea"}`)
		want(state("[1,0,9007199254740989]"))
		send(`{"option":"coffee", "action":"vote"}`)
		want(state("[1,1,9007199254740989]"))
		send(`{"action":"vote","option":"water"}`, `{"action":"vote","option":"water"}`)
		want(state("[1,1,9007199254740990]"), state("[1,1,9007199254740991]"))
		send(`{"action":"vote","option":"water"}`)
		want(`{"type":"error","code":"out_of_range","message":"That option has all the votes that it can have: this one was not counted."}`)
		send(`{"action":"vote","option":"milk"}`)
		want(`{"type":"error","code":"unknown_action","message":"Vote for \"tea\", \"coffee\" or \"water\"."}`)
		send(`tea`)
		want(`{"type":"error","code":"bad_message","message":"Send a JSON object with a string \"action\", such as {\"action\":\"vote\",\"option\":\"tea\"}."}`)
		if got := h.Stats().Value; got != (Value{1, 1, MaxValue}) {
			t.Errorf("Stats().Value = %v, want %v", got, Value{1, 1, MaxValue})
		}
	})
}

func TestVotesAsText(t *testing.T) {
	for s, ok := range map[string]bool{
		"[0,0,0]": true, "[1,2,3]": true, "[9007199254740991,0,9007199254740991]": true,
		"[1,2]": false, "[1,2,3,4]": false, "[-1,0,0]": false, "[9007199254740992,0,0]": false, "3": false, "": false,
	} {
		v, err := ParseValue(s)
		if (err == nil) != ok || ok && string(AppendValue(nil, v)) != s {
			t.Errorf("ParseValue(%q) = %v, %v, want ok %v", s, v, err, ok)
		}
	}
}
