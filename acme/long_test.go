package acme

import "flag"

// long selects the long forms of the trials.
var long = flag.Bool("long", false, "run the long forms of the trials, as CI does")
