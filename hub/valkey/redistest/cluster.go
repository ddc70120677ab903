package redistest

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Cluster is a Redis cluster on loopback: some primaries that share the hash slots, and a replica of the first of them. It ends
// with the test.
type Cluster struct {
	Nodes   []*Server // the primaries
	Replica *Server   // of Nodes[0]; it takes over a second or two after that has ended
}

// slots is the number of hash slots of a cluster.
const slots = 16384

// StartCluster starts a cluster of n primaries. Without redis-server on this machine, StartCluster skips the test.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{}
	buses := make(map[*Server]string) // the ports on which the nodes talk to each other
	node := func() *Server {
		bus := FreePort(t)
		s := Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", bus,
			"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
		buses[s] = bus
		return s
	}
	for i := range n {
		s := node()
		s.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(slots*i/n), strconv.Itoa(slots*(i+1)/n-1))
		c.Nodes = append(c.Nodes, s)
	}
	c.Replica = node()
	all := append(c.Nodes[:n:n], c.Replica)
	for i, s := range all {
		s.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	for _, s := range all[1:] {
		host, port := s.Host()
		all[0].Do("CLUSTER", "MEET", host, port, buses[s])
	}
	c.await(t, "the nodes know each other", func() bool {
		for _, s := range all {
			if !strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_known_nodes:"+strconv.Itoa(len(all))) {
				return false
			}
		}
		return true
	})
	c.Replica.Do("CLUSTER", "REPLICATE", c.Nodes[0].Do("CLUSTER", "MYID"))
	c.await(t, "the cluster works", func() bool {
		for _, s := range all {
			if !strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_state:ok") {
				return false
			}
		}
		return strings.Contains(c.Replica.Do("INFO", "replication"), "master_link_status:up") &&
			strings.Contains(all[n-1].Do("CLUSTER", "NODES"), "slave")
	})
	return c
}

// Copied waits until the replica has all changes.
func (c *Cluster) Copied(t testing.TB) {
	t.Helper()
	c.await(t, "the replica has all changes", func() bool { return c.Nodes[0].Do("WAIT", "1", "1000") == "1" })
}

func (c *Cluster) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s it is not so that %s", what)
		}
	}
}

// FreePort returns a port of loopback that nothing listens on.
func FreePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}
