package acme

import "crypto/tls"

// Served returns the certificate that is served for domain, with its chain and key. It returns nil if there is none yet,
// or if domain is not one of the domains. The certificate may have expired; the caller must not change it.
func (p *Provider) Served(domain string) *tls.Certificate {
	s := p.byName[domain]
	if s == nil {
		return nil
	}
	c := s.current.Load()
	if c == nil {
		return nil
	}
	return &c.Certificate
}

// Changed returns a channel that gets a value after a certificate that is served has changed. Several changes may count
// as one. The channel is for one receiver, and is never closed.
func (p *Provider) Changed() <-chan struct{} { return p.changed }

// tellChanged tells the receiver of Changed that a certificate has changed.
func (p *Provider) tellChanged() {
	select {
	case p.changed <- struct{}{}:
	default: // it has not received the change before
	}
}
