package valkey

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
)

var long = flag.Bool("long", false, "run the long forms of the trials, as CI does")

// TestMain runs at least four tests at a time, unless -parallel says otherwise: the tests wait
// for servers more than they compute.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", strconv.Itoa(max(4, runtime.GOMAXPROCS(0))))
	os.Exit(m.Run())
}
