package check

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// The flag long selects the long forms of the trials. This package has none; CI sets the flag for every package.
var _ = flag.Bool("long", false, "run the long forms of the trials, as CI does")

// TestMain lets four tests run at once for each processor, since most of them wait. -parallel overrides that.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set(strconv.Itoa(4 * runtime.GOMAXPROCS(0)))
	}
	os.Exit(m.Run())
}
