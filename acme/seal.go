package acme

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

// SealKeySize is the size of a key in bytes: AES-256.
const SealKeySize = 32

// sealMagic begins what is sealed. The last character is the format's.
const sealMagic = "plusminus sealed 1\n"

// sealIDSize is how many bytes tell which key something was sealed with.
const sealIDSize = 8

var (
	// errOtherKey is returned for what was sealed with a key that we have not. It is not damaged.
	errOtherKey = errors.New("it is sealed with a key that is not in -store-key-file")

	// errNotSealed is returned for what is no work of ours.
	errNotSealed = errors.New("it is not sealed by this version of plusminus")
)

// A sealer encrypts what is put where others may look: with AES-256-GCM, a random nonce each time, and the name
// as additional data, so that what is sealed under one name is not accepted under another.
// https://doi.org/10.6028/NIST.SP.800-38D
//
// 2^32 messages may be sealed with one key and random nonces; at a hundred for each order that is more
// than there will ever be.
type sealer struct {
	keys []sealKey // not empty; the first seals, all open
}

type sealKey struct {
	id   [sealIDSize]byte
	aead cipher.AEAD
}

// newSealer returns a sealer. keys are of [SealKeySize] each.
func newSealer(keys [][]byte) (*sealer, error) {
	s := new(sealer)
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
		return nil, errors.New("acme: what is shared needs a key")
	}
	return s, nil
}

// seal returns data sealed under name.
func (s *sealer) seal(name string, data []byte) ([]byte, error) {
	k := s.keys[0]
	out := slices.Concat([]byte(sealMagic), k.id[:])
	return k.aead.Seal(out, nil, data, []byte(name)), nil
}

// open returns what was sealed under name. The error is [errDamaged] if it was changed since.
func (s *sealer) open(name string, sealed []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(sealMagic))
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
			return nil, errDamaged
		}
		return data, nil
	}
	return nil, errOtherKey
}

// old reports whether what can be opened was sealed with another key than the first.
func (s *sealer) old(sealed []byte) bool {
	return !bytes.HasPrefix(sealed[len(sealMagic):], s.keys[0].id[:])
}

// ParseSealKeys reads keys for [Config.SealKeys]: each on a line of its own, 32 bytes in base64, as
// "openssl rand -base64 32" prints them. Empty lines, and those that begin with #, are passed over. No
// error of its holds a key.
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
