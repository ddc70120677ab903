package machine

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestRoom(t *testing.T) {
	const gb = 1 << 30
	for _, tt := range []struct {
		files, memory     uint64
		clients, arrivals int
	}{
		{20000, 64 * gb, 15949, 3987},
		{1 << 20, gb, 16384, 2048},
		{1 << 20, gb / 16, 1024, 128},
		{1024, gb, 768, 192},
		{128, gb, 77, 19},
		{64, gb, 39, 9},
		{1 << 20, 0, 1, 1},
	} {
		got := capacityFor(tt.files, tt.memory)
		if got.Clients != tt.clients || got.Arrivals != tt.arrivals {
			t.Errorf("capacityFor(%d, %d) = %+v, want %d clients, %d arrivals", tt.files, tt.memory, got, tt.clients, tt.arrivals)
		}
		if left := int(tt.files) - got.Clients - got.Arrivals; left < int(min(mostReserve, tt.files/4)) {
			t.Errorf("capacityFor(%d, %d) leaves %d descriptors", tt.files, tt.memory, left)
		}
	}
	here := capacityFor(1024, gb/16) // 1,024 clients' worth of memory, 960 descriptors for the public
	for _, tt := range []struct {
		asked, want int
		err         string
	}{
		{0, 768, ""},
		{10, 10, ""},
		{768, 768, ""},
		{800, 800, "memory"},
		{5000, 832, "file limit"},
	} {
		got, err := here.Fit(tt.asked)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Fit(%d) = %d, %v, want %d and %q", tt.asked, got, err, tt.want, tt.err)
		}
	}
}

// docs/limits.md states numbers that this package decides.
func TestLimitsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("at %d KB each no more than half of the memory | 503", ClientMemory>>10),
		fmt.Sprintf("at %d KB each no more than an eighth of the memory", arrivalMemory>>10),
		fmt.Sprintf("Of the file descriptors %d (", mostReserve),
		fmt.Sprintf("told %.0f %% of the memory limit", memoryRatio*100),
	} {
		if !strings.Contains(strings.Join(strings.Fields(string(page)), " "), want) {
			t.Errorf("docs/limits.md does not say %q", want)
		}
	}
}
