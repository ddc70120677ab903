package acmetest

import (
	"flag"
	"runtime"
	"strconv"
	"testing"
)

// Main runs the tests of a package whose tests wait more than they compute. It lets four of them run at once
// for each processor, in place of one, unless the flag -parallel says otherwise.
func Main(m *testing.M) int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
	return m.Run()
}
