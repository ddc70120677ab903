package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"plusminus/hub"
)

// The layout of the file. Disks have sectors of at most 4096 bytes, so one unreadable sector
// damages one copy only.
const (
	copies   = 2
	pageSize = 4096
	fileSize = copies * pageSize
)

const (
	format     = 1 // of a file with one counter
	formatMany = 2 // of a file with many counters
	intro      = "plusminus counter, format "

	// maxLine bounds a line: it fits in the smallest sector, 512 bytes.
	maxLine = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the line that holds s.
func encode(s hub.Snapshot) []byte {
	line := fmt.Appendf(nil, "%s%d: version %d, value ", intro, format, s.Version)
	line = append(hub.AppendValue(line, s.Value), ", crc32c "...)
	return fmt.Appendf(line, "%08x\n", crc32.Checksum(line, castagnoli))
}

// decode returns the snapshot in the line at the start of page.
func decode(page []byte) (hub.Snapshot, error) {
	var s hub.Snapshot
	line, _, ok := bytes.Cut(page[:min(len(page), maxLine)], []byte("\n"))
	if !ok || !strings.HasPrefix(string(line), intro) {
		return s, errors.New("it is not a counter")
	}
	var f int
	if _, err := fmt.Sscanf(string(line), intro+"%d:", &f); err == nil {
		switch {
		case f == formatMany:
			return s, ErrMany
		case f > formatMany:
			return s, fmt.Errorf("%w, in format %d", ErrNewer, f)
		}
	}
	// Sscanf is lenient, for example about spaces. So the check at the end encodes the result
	// again and compares all bytes, the checksum included.
	fmt.Sscanf(string(line), intro+"1: version %d", &s.Version)
	_, value, _ := strings.Cut(string(line), ", value ")
	value, _, _ = strings.Cut(value, ", crc32c ")
	var err error
	if s.Value, err = hub.ParseValue(value); errors.Is(err, hub.ErrRange) {
		return s, fmt.Errorf("value %s is out of range", value)
	}
	if err != nil || !bytes.HasPrefix(page, encode(s)) {
		return s, errors.New("the checksum does not match")
	}
	return s, nil
}

// parse returns the snapshot in a file: the newer of its two copies, or the undamaged one.
// Its errors wrap [ErrDamaged], [ErrMany] or [ErrNewer] and give the reason.
func parse(content []byte) (hub.Snapshot, error) {
	if len(content) == 0 {
		return hub.Snapshot{}, fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	a, errA := decode(content)
	b, errB := decode(content[min(len(content), pageSize):])
	switch {
	case errA == nil && errB == nil && a.Version == b.Version && a.Value != b.Value:
		return hub.Snapshot{}, fmt.Errorf("%w: its copies contradict each other", ErrDamaged)
	case errA == nil && (errB != nil || a.Version >= b.Version):
		return a, nil
	case errB == nil:
		return b, nil
	case errors.Is(errA, ErrNewer), errors.Is(errA, ErrMany):
		return hub.Snapshot{}, errA
	case errors.Is(errB, ErrNewer), errors.Is(errB, ErrMany):
		return hub.Snapshot{}, errB
	}
	return hub.Snapshot{}, fmt.Errorf("%w: %w", ErrDamaged, errA)
}
