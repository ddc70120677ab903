package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// lockName is the file whose lock keeps out other processes. It is never removed. It is
	// empty until the folder has a journal, and holds lockText from then on. So [Open] can
	// tell a folder that has lost its journal from a new one.
	lockName = "counter.lock"

	lockText = "There is a plusminus counter in " + FileName + " beside this file. Without it plusminus does not start at 0.\n"

	// lockTimeout is how long [Open] waits for another process to unlock the folder. A process
	// that is being replaced needs a moment to end.
	lockTimeout = 2 * time.Second
)

// lockFile is the open and locked file called lockName.
type lockFile struct{ diskFile }

// lockFolder locks folder dir. It returns ErrInUse if another process has the lock for lockTimeout.
func lockFolder(sys system, dir string) (lockFile, error) {
	path := filepath.Join(dir, lockName)
	f, err := sys.OpenFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return lockFile{}, fmt.Errorf("opening the counter: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err := f.TryLock()
		if err == nil {
			return lockFile{f}, nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s is %w", filepath.Join(dir, FileName), ErrInUse)
		} else {
			err = fmt.Errorf("locking %s: %w", path, err)
		}
		return lockFile{}, errors.Join(err, f.Close())
	}
}

// marked reports whether the folder has had a journal.
func (l lockFile) marked() (bool, error) {
	n, err := l.ReadAt(make([]byte, 1), 0)
	if err == io.EOF {
		err = nil
	}
	return n > 0, err
}

// mark records that the folder has a journal. It writes on every call, since text that can
// be read back may not be on disk.
func (l lockFile) mark() error {
	if _, err := l.WriteAt([]byte(lockText), 0); err != nil {
		return err
	}
	return l.Sync()
}
