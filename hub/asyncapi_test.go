package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
	"github.com/santhosh-tekuri/jsonschema/v6"
	yaml "go.yaml.in/yaml/v4"
)

const asyncAPIFile = "asyncapi.yaml"

// asyncAPI is asyncapi.yaml as generic JSON.
type asyncAPI struct {
	t    *testing.T
	root any
}

func readAsyncAPI(t *testing.T) *asyncAPI {
	t.Helper()
	data, err := os.ReadFile(asyncAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if data, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	if v, err = jsonschema.UnmarshalJSON(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return &asyncAPI{t, v}
}

// at returns the value at a path such as "#/channels/counter", or nil. It follows references.
func (a *asyncAPI) at(path string) any {
	v := a.root
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "#/"), "/") {
		object, _ := a.follow(v).(map[string]any)
		v = object[name]
	}
	return a.follow(v)
}

// follow returns v, or the value that it refers to if it is a reference.
func (a *asyncAPI) follow(v any) any {
	if ref := refOf(v); ref != "" {
		return a.at(ref)
	}
	return v
}

// refOf returns the path of the reference v, or "" if v is not a reference.
func refOf(v any) string {
	object, _ := v.(map[string]any)
	ref, _ := object["$ref"].(string)
	return ref
}

// object returns the object at a path, and reports an error for each of the given fields that it lacks.
func (a *asyncAPI) object(path string, fields ...string) map[string]any {
	a.t.Helper()
	object, ok := a.at(path).(map[string]any)
	if !ok {
		a.t.Fatalf("%s is not an object", path)
	}
	for _, f := range fields {
		if object[f] == nil {
			a.t.Errorf("%s has no %q", path, f)
		}
	}
	return object
}

// list returns the references in the list at a path.
func (a *asyncAPI) list(path string) []string {
	var refs []string
	items, _ := a.at(path).([]any)
	for _, item := range items {
		refs = append(refs, refOf(item))
	}
	return refs
}

// schema returns the schema of a message's payload.
func (a *asyncAPI) schema(message string) *jsonschema.Schema {
	a.t.Helper()
	return a.compile("#/components/messages/" + message + "/payload")
}

// compile returns the schema at a path that leads through no reference.
//
// "Schema Object ... is a superset of the
// JSON Schema Specification Draft 07". https://www.asyncapi.com/docs/reference/specification/v3.0.0#schemaObject
func (a *asyncAPI) compile(path string) *jsonschema.Schema {
	a.t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource(asyncAPIFile, a.root); err != nil {
		a.t.Fatal(err)
	}
	s, err := c.Compile(asyncAPIFile + path)
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

// parse returns a message in the form that jsonschema validates.
func parse(t *testing.T, message []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(message))
	if err != nil {
		t.Fatalf("%q: %v", message, err)
	}
	return v
}

// typeOf returns the type field of a message from the server. It is also the message's name in the document.
func typeOf(message any) string {
	object, _ := message.(map[string]any)
	kind, _ := object["type"].(string)
	return kind
}

// TestAsyncAPIStructure checks the rules of AsyncAPI 3.0 that the document uses: required fields are there,
// each reference leads to a value of the right kind, and no message, schema or variable is unused.
func TestAsyncAPIStructure(t *testing.T) {
	a := readAsyncAPI(t)
	root, _ := a.root.(map[string]any)
	if root["asyncapi"] != "3.0.0" {
		t.Errorf("asyncapi is %v, want 3.0.0", root["asyncapi"])
	}
	// The fixed fields of the AsyncAPI Object; all others begin with x-.
	// https://www.asyncapi.com/docs/reference/specification/v3.0.0#A2SObject
	known := []string{"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
	for field := range root {
		if !slices.Contains(known, field) {
			t.Errorf("the document has a field %q", field)
		}
	}
	a.object("#/info", "title", "version")
	for name := range a.object("#/servers") {
		server := a.object("#/servers/"+name, "host", "protocol")
		for variable := range a.object("#/servers/" + name + "/variables") {
			if !strings.Contains(server["host"].(string), "{"+variable+"}") {
				t.Errorf("server %s does not use its variable %s", name, variable)
			}
		}
	}

	carried := make(map[string]bool) // messages of channels, by whether an operation carries them
	for name := range a.object("#/channels") {
		path := "#/channels/" + name
		address, _ := a.object(path, "address", "messages")["address"].(string)
		// "This map MUST contain all the parameters used in the parent channel address."
		// https://www.asyncapi.com/docs/reference/specification/v3.0.0#parametersObject
		parameters, _ := a.at(path + "/parameters").(map[string]any)
		for parameter := range parameters {
			if a.object(path+"/parameters/"+parameter, "description"); !strings.Contains(address, "{"+parameter+"}") {
				t.Errorf("%s does not use its parameter %s", path, parameter)
			}
		}
		if strings.Count(address, "{") != len(parameters) {
			t.Errorf("%s has the address %s and %d parameters", path, address, len(parameters))
		}
		for _, ref := range a.list(path + "/servers") {
			if !strings.HasPrefix(ref, "#/servers/") {
				t.Errorf("%s has a server %q", path, ref)
			}
		}
		for message := range a.object(path + "/messages") {
			carried[path+"/messages/"+message] = false
		}
	}
	for name := range a.object("#/operations") {
		path := "#/operations/" + name
		op := a.object(path, "action", "channel", "messages")
		if op["action"] != "send" && op["action"] != "receive" {
			t.Errorf("%s has the action %v", path, op["action"])
		}
		// "The channel ... MUST point to a channel definition located in the root Channels
		// Object", and its messages to "a subset of the messages defined in the channel
		// referenced in this operation, and MUST NOT point to" components. So must those of a reply.
		carriers := []string{path}
		if op["reply"] != nil {
			carriers = append(carriers, path+"/reply")
		}
		for _, path := range carriers {
			channel := refOf(a.object(path, "channel", "messages")["channel"])
			if !strings.HasPrefix(channel, "#/channels/") {
				t.Errorf("%s has the channel %q", path, channel)
			}
			for _, ref := range a.list(path + "/messages") {
				if _, ok := carried[ref]; !ok || !strings.HasPrefix(ref, channel+"/messages/") {
					t.Errorf("%s has the message %q, which its channel does not have", path, ref)
				}
				carried[ref] = true
			}
		}
	}
	for path, ok := range carried {
		if !ok {
			t.Errorf("no operation carries %s", path)
		}
	}

	used := make(map[string]bool)
	var walk func(path string, v any)
	walk = func(path string, v any) {
		if ref := refOf(v); ref != "" {
			used[ref] = true
			if a.at(ref) == nil {
				t.Errorf("%s refers to %s, which does not exist", path, ref)
			}
		}
		switch v := v.(type) {
		case map[string]any:
			for name, part := range v {
				walk(path+"/"+name, part)
			}
		case []any:
			for i, part := range v {
				walk(fmt.Sprint(path, "/", i), part)
			}
		}
	}
	walk("#", a.root)
	for kind := range a.object("#/components") {
		for name := range a.object("#/components/" + kind) {
			if !used["#/components/"+kind+"/"+name] {
				t.Errorf("no reference to %s of components/%s", name, kind)
			}
		}
	}
}

// TestAsyncAPIExamples checks that each example is valid for its own message's schema, and for no other. An action that names
// its counter is also an action with a further field.
func TestAsyncAPIExamples(t *testing.T) {
	a := readAsyncAPI(t)
	names := slices.Sorted(maps.Keys(a.object("#/components/messages")))
	for _, name := range names {
		examples, _ := a.at("#/components/messages/" + name + "/examples").([]any)
		if len(examples) == 0 {
			t.Errorf("%s has no example", name)
		}
		for _, e := range examples {
			payload := e.(map[string]any)["payload"]
			for _, other := range names {
				want := other == name || name == "namedAction" && other == "action"
				if err := a.schema(other).Validate(payload); (err == nil) != want {
					t.Errorf("Validate(%v), an example of %s, as %s = %v", payload, name, other, err)
				}
			}
		}
	}
}

// TestAsyncAPIVectors checks the recorded conversations of the tutorial's server and clients. The document
// describes every message of the server, and those messages of clients that the hub accepts.
func TestAsyncAPIVectors(t *testing.T) {
	a := readAsyncAPI(t)
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Conversations []struct {
			Name  string
			Steps []struct {
				Do, Text string
				Then     map[string][]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	received := make(map[string]int)
	sent := make(map[bool]int) // by whether the hub accepts it
	for _, c := range vectors.Conversations {
		for i, step := range c.Steps {
			if step.Do == "send" {
				_, refused := decode(websocket.MessageText, []byte(step.Text))
				v, err := jsonschema.UnmarshalJSON(strings.NewReader(step.Text))
				if err == nil {
					err = a.schema("action").Validate(v)
				}
				if (err == nil) != (refused == nil) {
					t.Errorf("%s, step %d: %s: the document says %v, the hub says %v", c.Name, i, step.Text, err, refused)
				}
				sent[refused == nil]++
			}
			for _, messages := range step.Then {
				for _, m := range messages {
					v := parse(t, m)
					if string(canonicalJSON(t, v)) == `{"closed":1011}` {
						continue // not a message: the connection was closed
					}
					kind := typeOf(v)
					if err := a.schema(kind).Validate(v); err != nil {
						t.Errorf("%s, step %d: %s: %v", c.Name, i, m, err)
					}
					received[kind]++
				}
			}
		}
	}
	if received["users"] == 0 || received["state"] == 0 || sent[true] == 0 || sent[false] == 0 {
		t.Errorf("checked %v messages of the server and %v of clients, want some of each", received, sent)
	}
}

// canonicalJSON returns v as JSON without spaces and with sorted keys.
func canonicalJSON(t *testing.T, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAsyncAPIMessages checks that the document describes everything that the hub sends.
func TestAsyncAPIMessages(t *testing.T) {
	a := readAsyncAPI(t)
	var sent [][]byte
	for _, n := range []int{0, 1, 1 << 30} {
		sent = append(sent, appendUsers(nil, n))
	}
	for _, v := range []int64{0, 1, -1, MaxValue, -MaxValue} {
		sent = append(sent, appendState(nil, v))
	}
	var codes []any
	for _, r := range refusals {
		sent = append(sent, payloadOf(r.frame))
		codes = append(codes, r.code)
	}
	for _, m := range sent {
		v := parse(t, m)
		if err := a.schema(typeOf(v)).Validate(v); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	documented := a.object("#/components/schemas/error")["properties"].(map[string]any)["code"].(map[string]any)["enum"].([]any)
	for _, code := range documented {
		if !slices.Contains(codes, code) {
			t.Errorf("the document has the error %v, which is never sent", code)
		}
	}
	for _, fact := range []string{
		fmt.Sprintf("A message over %d bytes", MaxMessage),
		fmt.Sprintf("at most %d bytes", MaxMessage),
		fmt.Sprintf("maximum: %d", int64(MaxValue)),
	} {
		if data, err := os.ReadFile(asyncAPIFile); err != nil || !strings.Contains(string(data), fact) {
			t.Errorf("%s does not say %q (%v)", asyncAPIFile, fact, err)
		}
	}
}

// TestAsyncAPICounters compares what the document says of names, and of a connection about several counters, with the hub.
func TestAsyncAPICounters(t *testing.T) {
	a := readAsyncAPI(t)
	names := a.compile("#/components/schemas/name")
	for _, name := range []string{
		"likes", "Likes", "door.a", "a_b-c.9", "likes.", ".likes", "0", "..a", strings.Repeat("a", maxName),
		"", strings.Repeat("a", maxName+1), ".", "..", "...", "a/b", "a b", "é", "a%20b", "a\x00", "a\n", "likes?",
	} {
		if document, code := names.Validate(name), ValidName(name); (document == nil) != (code == nil) {
			t.Errorf("%q: the document says %v, ValidName says %v", name, document, code)
		}
	}
	if text, _ := a.object("#/components/parameters/name")["description"].(string); !strings.Contains(text, fmt.Sprintf("1 to %d letters", maxName)) {
		t.Errorf("the parameter's description %q does not say how long a name may be", text)
	}
	query := a.compile("#/channels/several/bindings/ws/query")
	list := make([]any, MaxNames+1)
	for i := range list {
		list[i] = fmt.Sprintf("n%d", i)
	}
	for _, tt := range []struct {
		names []any
		ok    bool
	}{{list[:1], true}, {list[:MaxNames], true}, {list, false}, {nil, false}, {[]any{"a", "a"}, false}, {[]any{"a/b"}, false}} {
		if err := query.Validate(map[string]any{"name": tt.names}); (err == nil) != tt.ok {
			t.Errorf("a query with the %d names %.40v: %v, want valid %v", len(tt.names), tt.names, err, tt.ok)
		}
	}

	named := func(message []byte) []byte { return payloadOf(inNamedFrames.appendOf(nil, message, "door.a")) }
	sent := map[string][][]byte{"namedUsers": {named(appendUsers(nil, 3))}, "namedState": {named(appendState(nil, -MaxValue))}}
	for _, r := range refusals {
		sent["namedError"] = append(sent["namedError"], named(r.message))
	}
	for kind, messages := range sent {
		for _, m := range messages {
			if err := a.schema(kind).Validate(parse(t, m)); err != nil {
				t.Errorf("%s as %s: %v", m, kind, err)
			}
		}
	}
	if err := a.schema("counted").Validate(parse(t, append(AppendValue([]byte(`{"value":`), MaxValue), '}'))); err != nil {
		t.Error(err)
	}
}

// TestAsyncAPISeveral has a conversation about several counters. Each message of the hub is one that the channel has, and the hub
// accepts the actions that the document describes.
func TestAsyncAPISeveral(t *testing.T) {
	a := readAsyncAPI(t)
	var kinds []*jsonschema.Schema
	for name, message := range a.object("#/channels/several/messages") {
		if name != "action" {
			kinds = append(kinds, a.compile(refOf(message)+"/payload"))
		}
	}
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		ws, _ := h.dialPath("/c?name=a&name=b")
		defer ws.CloseNow()
		next := func() string {
			_, data, err := ws.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			v, valid := parse(t, data), 0
			for _, s := range kinds {
				if s.Validate(v) == nil {
					valid++
				}
			}
			if valid != 1 {
				t.Errorf("%s is valid for %d messages of the channel, want 1", data, valid)
			}
			return typeOf(v)
		}
		for _, want := range []string{"users", "state", "users", "state"} {
			if got := next(); got != want {
				t.Errorf("received %s, want %s", got, want)
			}
		}
		for _, text := range []string{
			`{"action":"plus","counter":"b"}`, `{"counter":"a","action":"minus"}`, `{"counter":"a","action":"plus","by":10}`,
			plus, `{"action":"plus","counter":7}`, `{"action":"plus","counter":""}`, `{"action":"plus","Counter":"a"}`, `{"action":"leap","counter":"a"}`, `{"counter":"a"}`,
		} {
			if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
				t.Fatal(err)
			}
			accepted := next() == "state"
			if err := a.schema("namedAction").Validate(parse(t, []byte(text))); (err == nil) != accepted {
				t.Errorf("%s: the document says %v, the hub accepts it: %v", text, err, accepted)
			}
		}
		if _, err := h.Set(t.Context(), "a", MaxValue); err != nil {
			t.Fatal(err)
		}
		next()
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(`{"counter":"a","action":"plus"}`)); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != "error" {
			t.Errorf("received %s at the limit, want an error", got)
		}
	})
}

// payloadOf returns the payload of a frame that the hub sends.
func payloadOf(frame []byte) []byte { return frame[bytes.IndexByte(frame, '{'):] }

// TestAsyncAPIRefusesOthers checks that the schemas refuse invalid messages and accept further fields of an
// action.
func TestAsyncAPIRefusesOthers(t *testing.T) {
	a := readAsyncAPI(t)
	for _, tt := range []struct{ message, text string }{
		{"users", `{"type":"users"}`},
		{"users", `{"type":"users","count":-1}`},
		{"users", `{"type":"users","count":"1"}`},
		{"users", `{"type":"users","count":1.5}`},
		{"users", `{"type":"state","count":1}`},
		{"users", `{"type":"users","count":1,"value":1}`},
		{"state", `{"type":"state","value":9007199254740992}`},
		{"state", `{"type":"state","value":-9007199254740992}`},
		{"state", `{"type":"state","value":null}`},
		{"state", `{"value":1}`},
		{"error", `{"type":"error","code":"teapot","message":"x"}`},
		{"error", `{"type":"error","code":"bad_message"}`},
		{"error", `{"type":"error","code":"bad_message","message":""}`},
		{"action", `{"action":"times"}`},
		{"action", `{"action":1}`},
		{"action", `{"Action":"plus"}`},
		{"action", `["plus"]`},
		{"namedUsers", `{"type":"users","count":1}`},
		{"namedUsers", `{"counter":"a","type":"users","count":-1}`},
		{"namedState", `{"type":"state","value":1}`},
		{"namedState", `{"counter":"a/b","type":"state","value":1}`},
		{"namedState", `{"counter":"a","type":"state","value":9007199254740992}`},
		{"namedError", `{"type":"error","code":"bad_message","message":"x"}`},
		{"namedError", `{"counter":"a","type":"error","code":"teapot","message":"x"}`},
		{"namedAction", `{"action":"plus"}`},
		{"namedAction", `{"counter":"a","action":"times"}`},
		{"counted", `{"value":1,"users":1}`},
		{"counted", `{"value":"1"}`},
		{"action", `{}`},
	} {
		if err := a.schema(tt.message).Validate(parse(t, []byte(tt.text))); err == nil {
			t.Errorf("Validate(%s) as %s = nil, want an error", tt.text, tt.message)
		}
	}
	for _, text := range []string{plus, minus, `{"action":"plus","by":10}`} {
		if err := a.schema("action").Validate(parse(t, []byte(text))); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
