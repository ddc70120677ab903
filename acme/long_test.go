package acme

import (
	"flag"
	"os"
	"testing"

	"plusminus/acme/internal/acmetest"
)

// long selects the long forms of the trials.
var long = flag.Bool("long", false, "run the long forms of the trials, as CI does")

func TestMain(m *testing.M) { os.Exit(acmetest.Main(m)) }
