package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// SealKeySize is the size of a sealing key in bytes: AES-256.
const SealKeySize = 32

// SealMagic is the beginning of all sealed data. Its last character is the version of the format.
const SealMagic = "plusminus sealed 1\n"

// sealIDSize is the size in bytes of the id that names the sealing key.
const sealIDSize = 8

var (
	// ErrOtherKey is returned for data that was sealed with a key that this Sealer does not have. The data
	// is not damaged.
	ErrOtherKey = errors.New("it is sealed with a key that is not in -store-key-file")

	// errNotSealed is returned for data that does not begin with SealMagic.
	errNotSealed = errors.New("it is not sealed by this version of plusminus")
)

// A Sealer encrypts and authenticates data before it leaves this machine: AES-256-GCM with a random nonce.
// The name of the entry is the additional data, so data that was sealed under one name does not open under
// another. A Sealer is safe for concurrent use.
// https://doi.org/10.6028/NIST.SP.800-38D
//
// One key may seal 2^32 messages with random nonces. plusminus seals about a hundred for each order.
type Sealer struct {
	keys []sealKey // not empty; the first one seals, all open
}

type sealKey struct {
	id   [sealIDSize]byte
	aead cipher.AEAD
}

// NewSealer returns a Sealer. Each key has [SealKeySize] bytes.
func NewSealer(keys [][]byte) (*Sealer, error) {
	s := new(Sealer)
	for _, key := range keys {
		if len(key) != SealKeySize {
			return nil, fmt.Errorf("acme: a key of the shared store has %d bytes, want %d", len(key), SealKeySize)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(append([]byte("plusminus id of a key\x00"), key...))
		s.keys = append(s.keys, sealKey{[sealIDSize]byte(sum[:]), aead})
	}
	if len(s.keys) == 0 {
		return nil, errors.New("acme: the shared store needs a sealing key")
	}
	return s, nil
}

// Seal returns data sealed under name.
func (s *Sealer) Seal(name string, data []byte) []byte {
	k := s.keys[0]
	out := slices.Concat([]byte(SealMagic), k.id[:])
	return k.aead.Seal(out, nil, data, []byte(name))
}

// Open returns the data that was sealed under name. The error is [ErrDamaged] if sealed was changed, and
// [ErrOtherKey] if it was sealed with an unknown key.
func (s *Sealer) Open(name string, sealed []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(SealMagic))
	if !ok || len(rest) < sealIDSize {
		return nil, errNotSealed
	}
	id, rest := [sealIDSize]byte(rest), rest[sealIDSize:]
	for _, k := range s.keys {
		if k.id != id {
			continue
		}
		data, err := k.aead.Open(nil, nil, rest, []byte(name))
		if err != nil {
			return nil, ErrDamaged
		}
		return data, nil
	}
	return nil, ErrOtherKey
}

// old reports whether sealed, which Open accepts, was sealed with another key than the first.
func (s *Sealer) old(sealed []byte) bool {
	return !bytes.HasPrefix(sealed[len(SealMagic):], s.keys[0].id[:])
}

// ParseSealKeys reads sealing keys from text. Each key is a line of 32 bytes in base64, as
// "openssl rand -base64 32" prints it. Empty lines and lines that begin with # are skipped. The errors
// contain no key.
func ParseSealKeys(text []byte) ([][]byte, error) {
	var keys [][]byte
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != SealKeySize {
			return nil, fmt.Errorf("line %d is no key: want %d bytes in base64, as openssl rand -base64 %d prints them", n, SealKeySize, SealKeySize)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("it holds no key: make one with openssl rand -base64 %d", SealKeySize)
	}
	return keys, nil
}
