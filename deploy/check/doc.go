// Package check checks the files of deploy against the published types and grammars of those who
// read them: Kubernetes, Compose, Grafana and Prometheus. It is a module of its own, so that what that takes
// stays out of plusminus. It has nothing but tests: go test ./...
package check
