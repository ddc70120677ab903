package acme

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
	"plusminus/hub/valkey"
	"plusminus/hub/valkey/redistest"
)

// shareThrough changes cfg to a replica that shares through srv and has an empty folder of its own.
func shareThrough(t *testing.T, srv *redistest.Server, cfg *Config) {
	t.Helper()
	shared := valkey.NewFiles(valkey.Config{Address: srv.Addr})
	t.Cleanup(func() { shared.Close() })
	cfg.Dir = t.TempDir()
	cfg.Shared, cfg.SealKeys = shared, [][]byte{acmetest.SealKey(1)}
	cfg.lookInterval = 100 * time.Millisecond
}

// startShared starts a server and a CA, and returns a configuration of a replica for the two listeners.
func startShared(t *testing.T) (srv *redistest.Server, ca *pebbletest.CA, cfg Config, tlsLn, plainLn net.Listener) {
	t.Helper()
	srv, tlsLn, plainLn = redistest.Start(t), acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg = startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	shareThrough(t, srv, &cfg)
	return srv, ca, cfg, tlsLn, plainLn
}

// sharedKey returns the key in srv of the CA's entry called name.
func sharedKey(ca *pebbletest.CA, name string) string {
	return "{plusminus}:file:acme/" + store.DirectoryName(ca.DirectoryURL) + "/" + name
}

// waitStored waits until srv has the CA's entry called name.
func waitStored(t *testing.T, srv *redistest.Server, ca *pebbletest.CA, name string) {
	t.Helper()
	acmetest.WaitFor(t, name+" in the store", func() bool { return srv.Do("EXISTS", sharedKey(ca, name)) == "1" })
}

// TestReplicas for replicas that share only a server. All entries in that server are sealed.
func TestReplicasShared(t *testing.T) {
	t.Parallel()
	testReplicas(t, func(t *testing.T) func(*Config) {
		srv := redistest.Start(t)
		t.Cleanup(func() {
			names := strings.Fields(srv.Do("EVAL", "return table.concat(redis.call('KEYS', '*'), ' ')", "0"))
			if len(names) < 4 { // certificate, plan, account key and its copy
				t.Errorf("the server has only %q", names)
			}
			for _, name := range names {
				if !strings.Contains(name, ":file:") {
					continue
				}
				if data := srv.Do("HGET", name, "data"); !strings.HasPrefix(data, store.SealMagic) || strings.Contains(data, "PRIVATE") {
					t.Errorf("%s is not sealed", name)
				}
			}
		})
		return func(cfg *Config) { shareThrough(t, srv, cfg) }
	})
}

// A replica that starts while the shared store is away serves its copy; without a copy it waits and places no
// order. It continues when the store is back. A store that has lost its entries gets them back.
func TestSharedAway(t *testing.T) {
	t.Parallel()
	srv, ca, cfg, tlsLn, plainLn := startShared(t)

	srv.Kill()
	first := serve(t, cfg, tlsLn, plainLn)
	acmetest.WaitFor(t, "reason", func() bool { return first.status(t, domain).LastError != nil })
	if st := first.status(t, domain); st.LastError.Step != "store" || !strings.Contains(st.LastError.Reason, "refused") {
		t.Errorf("LastError = %+v, want that the store refuses", st.LastError)
	} else if st.CAs[0].Failures != 0 {
		t.Errorf("%d failures of a CA that was not asked", st.CAs[0].Failures)
	}
	if got := ca.Orders(); got != 0 {
		t.Fatalf("%d orders without a lock", got)
	}
	srv.Restart()
	first.waitReady(t)
	acmetest.WaitFor(t, "end of the attempt", func() bool { return first.status(t, domain).LastError == nil })
	if got := ca.Orders(); got != 1 {
		t.Fatalf("%d orders, want 1", got)
	}
	serial := first.status(t, domain).Serial
	waitStored(t, srv, ca, domain)

	// The replica keeps serving without the store, and a new process starts without it.
	srv.Kill()
	acmetest.WaitFor(t, "complaint", func() bool { return len(first.log.logged("stored state cannot be read")) > 0 })
	first.leaf(t, domain, ca.IssuingRoots)
	first.stop()
	second := serveLater(t, cfg)
	if st := second.status(t, domain); st.Serial != serial || st.Problem != "" {
		t.Errorf("serial %s (%s) from the copy, want %s", st.Serial, st.Problem, serial)
	}
	second.run()

	// The store comes back empty.
	srv.Restart()
	srv.Do("FLUSHALL")
	for _, name := range []string{domain, store.AccountKey, store.AccountKeyBackup} {
		waitStored(t, srv, ca, name)
	}
	// The store loses its entries while the replica runs. The plan comes back, too.
	waitStored(t, srv, ca, domain+store.PlanSuffix)
	srv.Do("FLUSHALL")
	for _, name := range []string{domain, domain + store.PlanSuffix, store.AccountKey} {
		waitStored(t, srv, ca, name)
	}
	// A new replica finds all entries.
	other := cfg
	shareThrough(t, srv, &other)
	third := serveLater(t, other)
	third.run()
	third.waitReady(t)
	if st := third.status(t, domain); st.Serial != serial {
		t.Errorf("a new replica serves serial %s, want %s", st.Serial, serial)
	}
	if !third.issuers[0].key.Equal(first.issuers[0].key) {
		t.Error("a new replica has another account key")
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders in all, want 1", got)
	}
}

// Replicas that begin to share do not order a certificate that one of them has.
func TestSharedAfterFolder(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	alone := serve(t, cfg, tlsLn, plainLn)
	alone.waitReady(t)
	alone.stop()
	dir := cfg.Dir
	shareThrough(t, srv, &cfg)
	cfg.Dir = dir
	first := serveLater(t, cfg)
	first.run()
	waitStored(t, srv, ca, domain)
	other := cfg
	shareThrough(t, srv, &other)
	second := serveLater(t, other)
	second.run()
	second.waitReady(t)
	for _, s := range []*server{first, second} {
		if got, want := s.status(t, domain).Serial, alone.status(t, domain).Serial; got != want {
			t.Errorf("serial %s, want %s, which one replica had", got, want)
		}
		if !s.issuers[0].key.Equal(alone.issuers[0].key) {
			t.Error("the account is not the one that there was")
		}
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
}

// A replica with another sealing key changes no entry, places no order, and reports the reason.
func TestSharedOtherKey(t *testing.T) {
	t.Parallel()
	srv, ca, cfg, tlsLn, plainLn := startShared(t)
	right := serve(t, cfg, tlsLn, plainLn)
	right.waitReady(t)
	waitStored(t, srv, ca, domain)
	right.stop()
	state := func() string {
		return srv.Do("EVAL", "local a = redis.call('KEYS', '*:file:*'); table.sort(a); for i, k in ipairs(a) do a[i] = k .. redis.call('HGET', k, 'version') end; return table.concat(a, ' ')", "0")
	}
	before := state()

	other := cfg
	shareThrough(t, srv, &other)
	other.SealKeys = [][]byte{acmetest.SealKey(2)}
	wrong := serveLater(t, other)
	wrong.run()
	acmetest.WaitFor(t, "reason", func() bool { return wrong.status(t, domain).LastError != nil })
	if e := wrong.status(t, domain).LastError; !strings.Contains(e.Hint, "-store-key-file") {
		t.Errorf("LastError = %+v, want a hint at the key", e)
	}
	if err := wrong.Ready(); err == nil || !strings.Contains(err.Error(), "sealed with a key") {
		t.Errorf("Ready = %v, want that the key is another one", err)
	}
	wrong.stop()
	if after := state(); after != before {
		t.Errorf("what was shared has changed from %s to %s", before, after)
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}

	// With the old key as the second one, the replica can read all entries: this is how a key is replaced.
	other.SealKeys = append(other.SealKeys, acmetest.SealKey(1))
	both := serveLater(t, other)
	both.run()
	both.waitReady(t)
	seal, err := store.NewSealer(other.SealKeys[:1])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{store.AccountKey, store.AccountKeyBackup} {
		sealed := srv.Do("HGET", sharedKey(ca, name), "data")
		if _, err := seal.Open("acme/"+store.DirectoryName(ca.DirectoryURL)+"/"+name, []byte(sealed)); err != nil {
			t.Errorf("%s, which is written once, opens with the new key: %v", name, err)
		}
	}
}

// A damaged entry is set aside. The replica that serves the certificate stores it again, without an order.
func TestSharedDamaged(t *testing.T) {
	t.Parallel()
	srv, ca, cfg, tlsLn, plainLn := startShared(t)
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	waitStored(t, srv, ca, domain)
	waitEnd(t, s) // otherwise the attempt may take the damaged entry for its own
	good := srv.Do("HGET", sharedKey(ca, domain), "data")
	srv.Do("HSET", sharedKey(ca, domain), "version", "another", "data", good[:len(good)-1]+"x")
	acmetest.WaitFor(t, "warning", func() bool { return len(s.log.logged("stored again")) > 0 })
	aside := srv.Do("EVAL", "return table.concat(redis.call('KEYS', '*damaged*'), ' ')", "0")
	if !strings.HasPrefix(aside, sharedKey(ca, domain)+".damaged-") || strings.Contains(aside, " ") {
		t.Errorf("set aside is %q", aside)
	} else if ttl := srv.Do("TTL", aside); ttl == "-1" {
		t.Error("what is set aside stays for good")
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
}

// Without a writable data folder there is no copy, but there is a certificate.
func TestSharedWithoutCopies(t *testing.T) {
	t.Parallel()
	srv, ca, cfg, tlsLn, plainLn := startShared(t)
	if err := os.WriteFile(filepath.Join(cfg.Dir, "acme"), nil, 0o600); err != nil { // where the folder would be
		t.Fatal(err)
	}
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	waitStored(t, srv, ca, domain)
	if len(s.log.logged("no cop")) == 0 {
		t.Error("nothing says that there are no copies")
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
}
