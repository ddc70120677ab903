package challenge

import "flag"

// The flag long selects the long forms of the trials. This package has none; CI sets the flag for every package.
var _ = flag.Bool("long", false, "run the long forms of the trials, as CI does")
