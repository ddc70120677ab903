// Plusminus serves one counter that everyone changes together, over WebSockets and TLS,
// with certificates that it obtains and renews itself. See README.md.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"plusminus/acme"
	"plusminus/hub"
	"plusminus/hub/valkey"
	"plusminus/static"
)

// version is set by the linker (-X main.version=…) in images and releases.
var version string

func main() {
	signaled, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancelCause(context.Background())
	context.AfterFunc(signaled, func() {
		stop() // a second signal ends the process at once, from before anybody can see that it is stopping
		cancel(context.Cause(signaled))
	})
	// A write over the limit of a file's size (ulimit -f, systemd's LimitFSIZE) is to fail like any
	// other, and not to end the process.
	signal.Ignore(syscall.SIGXFSZ)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.As(err, new(usageError)):
		fmt.Fprintf(os.Stderr, "plusminus: %v\nplusminus -h lists the flags\n", err)
		os.Exit(2)
	case errors.Is(err, errProblems):
		os.Exit(1) // they were told
	default:
		fmt.Fprintf(os.Stderr, "plusminus: %v\n", err)
		os.Exit(1)
	}
}

// run does what args say. It returns when that is done or, for a server, when ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "":
		cfg, err := parseConfig(args, os.LookupEnv, stdout)
		if err != nil {
			return err
		}
		log := newLogger(cfg, stderr)
		takeStandardLog(log)
		return serve(ctx, cfg, log, nil)
	case "healthcheck", "renew":
		cfg, err := parseConfig(args, os.LookupEnv, stdout)
		if err != nil {
			return err
		}
		if command == "renew" {
			return renew(ctx, cfg, stdout)
		}
		return healthcheck(ctx, cfg, stdout)
	case "check":
		return runCheck(ctx, args, stdout)
	case "value":
		return value(args, os.LookupEnv, stdout)
	case "version":
		_, err := fmt.Fprintln(stdout, "plusminus", versionString())
		return err
	}
	return usageError{fmt.Errorf("unknown command %q: there are check, renew, value, healthcheck and version; without one, plusminus serves", command)}
}

// serve runs the server until ctx ends, and then stops it. It passes the addresses that
// it listens on to listening, unless that is nil.
func serve(ctx context.Context, cfg *config, log *slog.Logger, listening func(addresses)) error {
	log.Info("starting", "version", versionString(), "domains", domainNames(cfg.domains), "data", cfg.data, "max_clients", cfg.maxClients)
	if cfg.maxClientsErr != nil {
		log.Warn("-max-clients does not fit this machine", "max_clients", cfg.maxClients, "err", cfg.maxClientsErr)
	}
	limitMemory(log)

	hangup := make(chan os.Signal, 1) // first of all, since otherwise the signal ends the process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	if cfg.keepsFiles() {
		err := makeFolder(cfg.data)
		if (cfg.memory || cfg.shared != nil) && errors.Is(err, syscall.EROFS) {
			// A disk that failed and was mounted so again; the certificates on it are as good as ever.
			log.Error("the data folder is read-only: serving what is in it, but nothing can be renewed", "data", cfg.data)
		} else if err != nil {
			return err
		}
	}
	var certs *acme.Provider // nil without TLS
	if !cfg.plain {
		var closeFiles func()
		var err error
		if certs, closeFiles, err = newProvider(cfg, log); err != nil {
			return err
		}
		defer closeFiles()
	}
	store, closeStore, err := openStore(cfg, log)
	if err != nil {
		return err
	}
	defer closeStore()
	events := hub.NewEvents(log, refusalHints)
	h, err := hub.New(ctx, hub.Config{
		Store:           store,
		Logger:          log,
		Events:          events,
		Origins:         cfg.origins,
		MaxClients:      cfg.maxClients,
		MaxClientsPerIP: cfg.maxClientsPerIP,
		ActionRate:      cfg.actionRate,
		ActionBurst:     cfg.actionBurst,
	})
	if err != nil {
		return err
	}

	lns, err := listenAll(ctx, cfg)
	if err != nil {
		return errors.Join(err, h.Shutdown(ctx))
	}
	defer lns.close() // those that no server has taken
	addrs := lns.addresses()
	log.Info("listening", "url", pageURL(cfg, addrs), "https", addrs.HTTPS, "http", addrs.HTTP, "admin", addrs.Admin)

	if len(cfg.proxyProtocol) > 0 {
		lns.believe(cfg.proxyProtocol, events)
	}
	door := cfg.door(events)
	public := &site{domains: cfg.domains, certs: certs, hub: h, page: static.Handler(), events: events}
	visited := door.handler(public)
	if len(cfg.trustedProxies) > 0 {
		visited = &forwarded{cfg.trustedProxies, visited}
	}
	health := &health{hub: h, store: cfg.storeName(), certs: certs, events: events, gate: door.gate}
	busy := new(busy)
	var (
		srv   = newServer(visited, log) // TLS, or everything with -plain
		plain = newServer(nil, log)     // challenges and redirects
		admin = newServer(newAdmin(health), log)
	)
	srv.ConnState, plain.ConnState = busy.connState, busy.connState
	// The servers run until they are shut down; what comes first, the end of ctx or the
	// failure of one, stops all.
	g, ctx := errgroup.WithContext(ctx)
	for _, ln := range lns.https {
		secure := door.gate.TLSListener(ln, certs.TLSConfig()) // here, since certs has to know before Run
		g.Go(func() error { return busy.serve(srv, secure) })
	}
	if lns.http != nil {
		open := door.gate.Listener(lns.http)
		if cfg.plain {
			g.Go(func() error { return busy.serve(srv, open) })
		} else {
			plain.Handler = door.handler(certs.HTTPHandler(&redirect{site: public, port: httpsPort(addrs.HTTPS)}))
			g.Go(func() error { return busy.serve(plain, open) })
		}
	}
	if lns.admin != nil {
		own := hub.NewGate(hub.GateConfig{Events: events}) // no stranger's connection has to go for it, nor it for one
		g.Go(func() error { return serveOn(admin, own.Listener(lns.admin)) })
	}
	if certs != nil {
		g.Go(func() error { return certs.Run(ctx) }) // not before the listeners: the CA's challenges arrive on them
	}
	g.Go(func() error { reloadOn(ctx, hangup, certs, log); return nil })
	g.Go(func() error { keepPace(ctx, func() int { return h.Stats().Clients }); return nil })
	if listening != nil {
		listening(addrs)
	}
	notify(log, daemon.SdNotifyReady)

	<-ctx.Done()
	health.stopping.Store(true)
	notify(log, daemon.SdNotifyStopping)
	log.Info("stopping", "reason", context.Cause(ctx), "clients", h.Stats().Clients, "drain", cfg.drain.String())
	began := time.Now()
	stop(ctx, cfg.drain, lns, busy, h, log, srv, plain)
	admin.Close() // last, to say until now that we are stopping
	err = g.Wait()
	log.Info("stopped", "took", time.Since(began).Round(time.Millisecond).String())
	return err
}

// openStore opens what the counter lives in, and returns what closes it.
func openStore(cfg *config, log *slog.Logger) (store hub.Store, closeStore func() error, err error) {
	switch {
	case cfg.memory:
		return new(hub.Memory), func() error { return nil }, nil
	case cfg.shared != nil:
		c := *cfg.shared
		c.Logger = log
		log.Info("sharing the counter", "store", c.String())
		s := valkey.New(c) // a server that is away is waited for: /readyz says so
		return s, s.Close, nil
	}
	file, err := openJournal(cfg)
	if err != nil {
		return nil, nil, err
	}
	return file, file.Close, nil
}

// reloadOn has certs, unless it is nil, look at its files and ask its CAs at each signal, until ctx ends.
func reloadOn(ctx context.Context, hangup <-chan os.Signal, certs *acme.Provider, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			log.Info("SIGHUP: looking at the certificates")
			if certs != nil {
				certs.Reload()
			}
		}
	}
}

// makeFolder makes the data folder if it is missing, and makes sure that files can be made
// in it: a volume with the wrong owner is the usual mistake with containers.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	f, err := os.CreateTemp(dir, ".write-test-*")
	if err != nil {
		return fmt.Errorf("-data: %w; the folder must belong to the user that plusminus runs as, uid %d", err, os.Getuid())
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func serveOn(srv *http.Server, ln net.Listener) error {
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving on %s: %w", ln.Addr(), err)
	}
	return nil
}

// newServer returns a server with limits fit for strangers.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: handler,
		// A request has no body, and its header fits one packet. The hub has its own rules for
		// what comes after an upgrade, and its gate for TLS handshakes.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		// Enough for a page and what belongs to it. A connection that idles takes a place at the gate,
		// and each page that hears nothing asks for /state now and then.
		IdleTimeout:    10 * time.Second,
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// newProvider returns what hands out certificates, and what closes the things that it uses, once its
// Run has returned.
func newProvider(cfg *config, log *slog.Logger) (certs *acme.Provider, closeFiles func(), err error) {
	c, closeFiles, err := acmeConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	c.Logger = log
	switch {
	case c.Shared != nil:
		log.Info("sharing certificates", "store", c.Shared.String())
	case cfg.shared != nil && cfg.cert == "" && slices.ContainsFunc(cfg.domains, func(d acme.Domain) bool { return !d.Local }):
		log.Info("certificates stay in the data folder: with -store-key-file they are shared through the store, too", "data", cfg.data)
	}
	if certs, err = acme.New(c); err != nil {
		closeFiles()
	}
	return certs, closeFiles, err
}

// acmeConfig reads the files that cfg names. The second result closes what replicas share.
func acmeConfig(cfg *config) (c acme.Config, closeFiles func(), err error) {
	c, err = readACMEConfig(cfg)
	if err != nil || cfg.sealKeys == nil {
		return c, func() {}, err
	}
	files := valkey.NewFiles(*cfg.shared)
	c.Shared, c.SealKeys = files, cfg.sealKeys
	return c, func() { files.Close() }, nil
}

func readACMEConfig(cfg *config) (acme.Config, error) {
	c := acme.Config{
		Domains:      cfg.domains,
		Dir:          cfg.data,
		CertFile:     cfg.cert,
		KeyFile:      cfg.key,
		DirectoryURL: cfg.directory,
		Email:        cfg.email,
		EABKeyID:     cfg.eabKID,
		Profile:      cfg.profile,
		ReuseKey:     cfg.reuseKey,

		FallbackURL:      cfg.fallback,
		FallbackEABKeyID: cfg.fallbackEABKID,
	}
	if cfg.caRoot != "" {
		pem, err := os.ReadFile(cfg.caRoot)
		if err != nil {
			return c, fmt.Errorf("reading -acme-ca-root: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return c, fmt.Errorf("reading -acme-ca-root: %s holds no PEM certificate", cfg.caRoot)
		}
	}
	var err error
	if c.EABKey, err = readEABKey(cfg.eabKeyFile); err != nil {
		return c, fmt.Errorf("reading -acme-eab-key-file: %w", err)
	}
	if c.FallbackEABKey, err = readEABKey(cfg.fallbackEABKeyFile); err != nil {
		return c, fmt.Errorf("reading -acme-fallback-eab-key-file: %w", err)
	}
	return c, nil
}

func domainNames(domains []acme.Domain) []string {
	names := make([]string, len(domains))
	for i, d := range domains {
		names[i] = d.Name
	}
	return names
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
