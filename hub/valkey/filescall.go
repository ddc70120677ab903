package valkey

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/valkey-io/valkey-go"
)

// redialAfter is the pause after a failed connection. Calls in it fail at once.
const redialAfter = 500 * time.Millisecond

// exec runs a script that returns 1 or 0.
func (f *Files) exec(ctx context.Context, script *valkey.Lua, keys []string, args ...string) (bool, error) {
	return f.call(ctx, func(ctx context.Context, c valkey.Client) valkey.ValkeyResult {
		return script.Exec(ctx, c, keys, args)
	}).AsBool()
}

// do runs a command.
func (f *Files) do(ctx context.Context, command func(valkey.Client) valkey.Completed) result {
	return f.call(ctx, func(ctx context.Context, c valkey.Client) valkey.ValkeyResult { return c.Do(ctx, command(c)) })
}

// result is the server's result, or the reason why there is none.
type result struct {
	valkey.ValkeyResult
	err error
}

func (r result) Error() error {
	if r.err != nil {
		return r.err
	}
	return r.ValkeyResult.Error()
}

func (r result) AsStrSlice() ([]string, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.ValkeyResult.AsStrSlice()
}

func (r result) ToString() (string, error) {
	if r.err != nil {
		return "", r.err
	}
	return r.ValkeyResult.ToString()
}

func (r result) AsBool() (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	return r.ValkeyResult.AsBool()
}

// call connects if there is no connection, and makes one call. An error ends the connection,
// since the server's name may lead to another server by the next call.
func (f *Files) call(ctx context.Context, send func(context.Context, valkey.Client) valkey.ValkeyResult) result {
	client, err := f.connection()
	if err != nil {
		return result{err: fmt.Errorf("%s: %w", f.cfg.Address, why(err))}
	}
	callCtx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	res := send(callCtx, client)
	err = res.Error()
	if err == nil || valkey.IsValkeyNil(err) {
		return result{ValkeyResult: res}
	}
	if ctx.Err() != nil {
		return result{err: context.Cause(ctx)} // the caller gave up; the connection may be fine
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = noAnswer(callCtx)
	}
	f.mu.Lock()
	f.dropLocked(client, err)
	f.mu.Unlock()
	return result{err: fmt.Errorf("%s: %w", f.cfg.Address, why(err))}
}

// connection returns the present connection, or makes one. Other callers wait meanwhile.
func (f *Files) connection() (valkey.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.open.Err() != nil:
		return nil, notSentError{errors.New("closed")}
	case f.client != nil:
		return f.client, nil
	case time.Now().Before(f.dialAt):
		return nil, notSentError{f.err}
	}
	client, err := f.cfg.dial(f.open, f.name, f.cfg.Address)
	if err != nil {
		f.dialAt = time.Now().Add(redialAfter)
		f.dropLocked(client, err)
		return nil, notSentError{err}
	}
	f.client, f.err = client, nil
	return client, nil
}

// dropLocked closes client and records why. If another connection has taken its place, that
// one stays.
func (f *Files) dropLocked(client valkey.Client, err error) {
	f.err = err
	if client == nil {
		return
	}
	if f.client == client {
		f.client = nil
	}
	f.running.Go(client.Close) // takes up to a second if the server is silent
}
