// Package check tests the files of deploy against the published types and grammars of the programs that
// read them: Kubernetes, Compose, Grafana and Prometheus. It is a module of its own, so that plusminus does
// not depend on those types. It contains only tests: go test ./...
package check
