package config

import "github.com/agnivade/levenshtein"

// Nearest returns the one of words that typed is most likely meant to be, or "" if none is near: more
// than a third of its letters would have to change.
func Nearest(typed string, words []string) string {
	nearest, least := "", len(typed)/3+1
	for _, w := range words {
		if d := levenshtein.ComputeDistance(typed, w); d < least || d == least && nearest == "" {
			nearest, least = w, d
		}
	}
	return nearest
}
