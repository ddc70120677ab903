package store

import (
	"log/slog"
	"strings"
	"testing"

	"plusminus/hub"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in, want string // want is String of the Spec, or a part of the error
		usesData bool
		ok       bool
	}{
		{"file", "file", true, true},
		{"memory", "memory", false, true},
		{"redis://u:secret@valkey.example.com/2?prefix=a", "redis://valkey.example.com:6379/2?prefix=a", false, true},
		{"rediss://valkey.example.com", "rediss://valkey.example.com:6379/0?prefix=plusminus", false, true},
		{"disk", `"disk" is unknown: use file, memory, or redis://host:port`, false, false},
		{"u:secret@valkey.example.com", "write redis://", false, false},
	} {
		spec, err := Parse(tt.in)
		if !tt.ok {
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("Parse(%q) = %v, want an error with %q and no password", tt.in, err, tt.want)
			}
			continue
		}
		if err != nil || spec.String() != tt.want || spec.UsesData() != tt.usesData {
			t.Errorf("Parse(%q) = %v, %v, want %s, in the data folder: %v", tt.in, spec, err, tt.want, tt.usesData)
		}
	}
}

// The file keeps its value between processes, and names the way out when a server has it.
func TestFile(t *testing.T) {
	data := t.TempDir()
	if _, err := (File{}).Value(data); err == nil || !strings.Contains(err.Error(), "plusminus value set N -data "+data) {
		t.Errorf("Value of an empty folder: %v, want the command that sets it", err)
	}
	if _, err := (File{}).SetValue(data, 7); err != nil {
		t.Fatal(err)
	}
	store, closeStore, err := File{}.Open(data, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if snap, err := store.Load(t.Context()); err != nil || snap.Value != hub.Value(7) {
		t.Errorf("Load = %+v, %v, want 7", snap, err)
	}
	if _, err := (File{}).Value(data); err == nil || !strings.Contains(err.Error(), "stop that plusminus first") {
		t.Errorf("Value while a server runs: %v, want to stop it", err)
	}
	if err := closeStore(); err != nil {
		t.Error(err)
	}
	if n, err := (File{}).Value(data); err != nil || n != 7 {
		t.Errorf("Value = %v, %v, want 7", n, err)
	}
}
