// Package server joins certificates, store, hub and listeners to one running server.
//
// [New] makes the parts and opens the listeners; [Server.Run] serves and stops. Both read from top to
// bottom in the order in which things happen. Run's goroutines are one for each listener, one for
// the certificates, one for their export, and one for the pace of the garbage collector. All have ended when it returns.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"plusminus/acme/export"
	"plusminus/hub"
	"plusminus/internal/admin"
	"plusminus/internal/config"
	"plusminus/internal/ingress"
	"plusminus/internal/machine"
	"plusminus/static"
)

// A Server is a plusminus with open listeners. Run is to be called once.
type Server struct {
	// Immutable after New.
	log       *slog.Logger
	drain     time.Duration
	certs     certificates
	export    *export.Exporter // nil without -export
	hub       *hub.Hub
	listeners *ingress.Listeners
	services  []service
	admin     *admin.Admin
	arriving  *arriving
	closers   []func() error // of what Run leaves open, in the order of opening
}

// A service is an HTTP server with the listener that it serves on.
type service struct {
	http     *http.Server
	listener net.Listener
	public   bool // a stop waits for its clients
}

// Options are what a server gets from its process, beside the configuration.
type Options struct {
	Version   string
	Log       *slog.Logger
	LinesLost func() uint64 // how many lines of Log have been lost; nil counts none
}

// New makes a server as cfg says, and opens its listeners: from then on connections wait for Run.
// The error is a [config.UsageError] if cfg names a file that cannot be used. ctx bounds the loading
// of the counter.
func New(ctx context.Context, cfg *config.Config, opts Options) (s *Server, err error) {
	log := opts.Log
	files, err := ReadFiles(cfg)
	if err != nil {
		return nil, err
	}
	here := machine.Here()
	capacity := here.Capacity()
	maxClients, tight := capacity.Fit(cfg.MaxClients)
	log.Info("starting", "version", opts.Version, "domains", cfg.DomainNames(), "data", cfg.Data, "max_clients", maxClients)
	if tight != nil {
		log.Warn("-max-clients does not fit this machine", "max_clients", maxClients, "err", tight)
	}
	machine.LimitMemory(log)
	if cfg.UsesData() {
		if err := openData(cfg, log); err != nil {
			return nil, err
		}
	}

	s = &Server{log: log, drain: cfg.Drain, arriving: new(arriving)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			s = nil
		}
	}()
	if s.certs, err = s.openCertificates(cfg, files); err != nil {
		return s, err
	}
	if s.export, err = s.openExport(cfg); err != nil {
		return s, err
	}
	counter, closeStore, err := openStore(cfg, files.Store, log)
	if err != nil {
		return s, err
	}
	s.closers = append(s.closers, closeStore)
	gateways := here.Gateways()
	events := hub.NewEvents(hub.EventsConfig{
		Logger:   log,
		Refusals: ingress.Refusals(),
		Hints:    ingress.Hints(),
		HintFor: func(reason hub.Reason, remote netip.Prefix) string {
			clients, total := s.hub.ClientsOf(remote) // s.hub is there before any listener
			return ingress.SharedHint(reason, remote, gateways, clients, total)
		},
	})
	s.hub, err = hub.New(ctx, hub.Config{
		Store:           counter,
		Logger:          log,
		Events:          events,
		Origins:         cfg.Origins,
		MaxClients:      maxClients,
		MaxClientsPerIP: cfg.MaxClientsPerIP,
		ActionRate:      cfg.ActionRate,
		ActionBurst:     cfg.ActionBurst,
		Counters:        cfg.Counters,
		MayMake:         permits(ingress.NewRates(1/makingEvery.Seconds(), makingBurst)),
		MayAct:          actRate(cfg),
	})
	if err != nil {
		return s, err
	}

	s.listeners, err = ingress.Listen(ctx, ingress.Addresses{HTTPS: cfg.HTTPS, HTTP: cfg.HTTP, Admin: cfg.Admin})
	if err != nil {
		return s, errors.Join(err, s.hub.Shutdown(ctx))
	}
	addrs := s.Addresses()
	log.Info("listening", "url", pageURL(cfg, addrs), "https", addrs.HTTPS, "http", addrs.HTTP, "admin", addrs.Admin)
	in := ingress.New(ingress.Config{
		Hosts:           cfg.DomainNames(),
		LoadBalancers:   cfg.LoadBalancers,
		TrustedProxies:  cfg.TrustedProxies,
		MaxArrivals:     capacity.Arrivals,
		ConnectionRate:  cfg.ConnectionRate,
		MaxClientsPerIP: cfg.MaxClientsPerIP,
		Events:          events,
		Logger:          log,
	})
	in.Balanced(s.listeners)

	page := &routes{hosts: in.Hosts, upgrades: in.Upgrades, certs: s.certs, hub: s.hub, events: events, page: static.Handler(cfg.FrameOrigins...), many: len(cfg.Counters) > 0}
	visitors := func(h http.Handler) *http.Server {
		h = withHealth(func() error { return s.admin.Ready() }, h) // s.admin is made below
		srv := newHTTPServer(in.Forwarded(in.Requests.Limit(h, joins)), log)
		srv.IdleTimeout = idleTimeout(cfg)
		srv.ConnState = s.arriving.connState
		in.Watch(srv)
		return srv
	}
	secure := visitors(page)
	for _, ln := range s.listeners.HTTPS {
		s.services = append(s.services, service{secure, in.Gate.TLSListener(ln, s.certs.TLSConfig()), true})
	}
	if ln := s.listeners.HTTP; ln != nil {
		plain := visitors(s.certs.plainHandler(page, &redirect{in.Hosts, in.Upgrades, httpsPort(addrs.HTTPS)}))
		s.services = append(s.services, service{plain, in.Gate.Listener(ln), true})
	}
	s.admin = admin.New(admin.Config{
		Version:      opts.Version,
		Hub:          s.hub,
		Store:        files.Store.String(),
		Certificates: s.certs,
		Export:       s.export,
		Events:       events,
		Gate:         in.Gate,
		LinesLost:    opts.LinesLost,
		Data:         dataOf(cfg, files.Store),
		Host:         hostOf(cfg.Admin),
		MaxCounters:  maxCounters(cfg),
	})
	if ln := s.listeners.Admin; ln != nil {
		// A gate of its own: neither the admin listener nor the public ones take places from the other.
		own := ingress.NewGate(ingress.GateConfig{Events: events, Logger: log})
		s.services = append(s.services, service{newHTTPServer(s.admin, log), own.Listener(ln), false})
	}
	return s, nil
}

// Addresses returns where the server listens.
func (s *Server) Addresses() ingress.Addresses { return s.listeners.Addresses() }

// Reload makes the server read its certificate files again, and ask its CAs when they want a renewal.
// It returns at once. It is safe from any goroutine.
func (s *Server) Reload() { s.certs.Reload() }

// Run serves until ctx ends or a listener fails, and then stops: it hands clients over within the time
// of -drain. The error is that of the listener; a stop by ctx returns nil.
func (s *Server) Run(ctx context.Context) error {
	// The first that ends, ctx or a service, stops all.
	g, ctx := errgroup.WithContext(ctx)
	for _, sv := range s.services {
		g.Go(func() error { return s.serve(sv) })
	}
	g.Go(func() error { return s.certs.Run(ctx) }) // after the listeners: the CA's challenges arrive on them
	if s.export != nil {
		g.Go(func() error { return s.export.Run(ctx) })
	}
	g.Go(func() error {
		machine.KeepPace(ctx, func() int { return s.hub.Stats().Clients })
		return nil
	})
	s.notify(daemon.SdNotifyReady)

	<-ctx.Done()
	s.admin.Stopping()
	s.notify(daemon.SdNotifyStopping)
	s.log.Info("stopping", "reason", context.Cause(ctx), "clients", s.hub.Stats().Clients, "drain", s.drain.String())
	began := time.Now()
	s.stop(ctx)
	err := g.Wait()
	err = errors.Join(err, s.close())
	s.log.Info("stopped", "took", time.Since(began).Round(time.Millisecond).String())
	return err
}

func (s *Server) serve(sv service) error {
	if sv.public {
		s.arriving.add(1) // the listener may have accepted a connection that the server does not know yet
		defer s.arriving.add(-1)
	}
	if err := sv.http.Serve(sv.listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving on %s: %w", sv.listener.Addr(), err)
	}
	return nil
}

// close closes what is open, the newest first. Listeners that a server has closed already do not
// matter.
func (s *Server) close() error {
	if s.listeners != nil {
		s.listeners.Close()
	}
	var errs []error
	for _, closer := range slices.Backward(s.closers) {
		errs = append(errs, closer())
	}
	return errors.Join(errs...)
}

// notify tells systemd about the state of the process, if systemd wants to know (Type=notify).
func (s *Server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("telling systemd", "state", state, "err", err)
	}
}

// newHTTPServer returns a server with limits that are fit for strangers.
func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: handler,
		// A request has no body, and its header fits one packet. The hub has its own limits after an
		// upgrade, and the gate has one for TLS handshakes.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       idleDirect,
		MaxHeaderBytes:    ingress.MaxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// How long an idle connection is kept for the next request. The gate closes it earlier if it needs the place.
const (
	// idleDirect is enough for a page and its files. An idle connection takes a place at the gate, and a page
	// without messages asks for /state only every few minutes.
	idleDirect = 10 * time.Second

	// idleBalanced is for -proxy-protocol. A balancer that reuses connections must be the one that closes them:
	// if the server closes one at the moment that the balancer uses it, a visitor gets 502. An AWS ALB and nginx
	// keep idle connections for 60 s.
	// https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-troubleshooting.html
	// https://nginx.org/en/docs/http/ngx_http_upstream_module.html#keepalive_timeout
	idleBalanced = 75 * time.Second

	// idleProxied is for -plain. The peers are proxies, which are few, and reuse connections for longer than that:
	// Oracle's load balancer for 300 s, Google's for 600 s, and neither can be changed.
	// https://docs.oracle.com/iaas/Content/Balance/Reference/connectionreuse.htm
	// https://cloud.google.com/load-balancing/docs/https/request-distribution
	idleProxied = 620 * time.Second
)

// idleTimeout returns the time for the public listeners.
func idleTimeout(cfg *config.Config) time.Duration {
	switch {
	case cfg.Plain:
		return idleProxied
	case len(cfg.LoadBalancers) > 0:
		return idleBalanced
	}
	return idleDirect
}

// openData makes the data folder if it is missing, and checks that files can be made in it: a volume
// with the wrong owner is the usual mistake with containers. A folder that is read-only is no error if
// the counter lives elsewhere, since the certificates in it can still be served.
func openData(cfg *config.Config, log *slog.Logger) error {
	err := tryData(cfg.Data)
	if !cfg.Store.UsesData() && errors.Is(err, syscall.EROFS) {
		log.Error("the data folder is read-only: its certificates are served, but nothing can be renewed", "data", cfg.Data)
		return nil
	}
	return err
}

func tryData(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	f, err := os.CreateTemp(dir, ".write-test-*")
	if err != nil {
		return fmt.Errorf("-data: %w; the folder must belong to the user that plusminus runs as, uid %d", err, os.Getuid())
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// hostOf returns the host of an address to listen on, or "".
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return host
}
