package machine

import "testing"

func TestGCPercent(t *testing.T) {
	for _, tt := range []struct{ clients, want int }{
		{0, 100}, {1000, 100}, {2000, 50}, {4000, 25}, {5000, 20}, {100000, 20},
	} {
		if got := gcPercent(tt.clients); got != tt.want {
			t.Errorf("gcPercent(%d) = %d, want %d", tt.clients, got, tt.want)
		}
	}
}

func TestNear(t *testing.T) {
	for _, tt := range []struct {
		a, b int
		want bool
	}{
		{0, 0, true}, {0, 99, true}, {100, 0, false}, {1000, 901, true}, {1000, 900, false}, {10000, 9001, true}, {9000, 10000, false},
	} {
		if got := near(tt.a, tt.b); got != tt.want {
			t.Errorf("near(%d, %d) = %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}
