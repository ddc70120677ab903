package valkey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/valkey-io/valkey-go"
)

var (
	errNoAnswer = fmt.Errorf("no answer within %v", answerTimeout)

	// errNotSent matches errors of a call that was never sent. See notSentError.
	errNotSent = errors.New("not connected")
)

// notSentError is why a call was not sent. It has the text of err, and is errNotSent as well.
type notSentError struct{ err error }

func (e notSentError) Error() string        { return e.err.Error() }
func (e notSentError) Unwrap() error        { return e.err }
func (e notSentError) Is(target error) bool { return target == errNotSent }

// certain reports whether err means that the server has not run the script, and will not.
func certain(err error) bool {
	if _, ok := valkey.IsValkeyErr(err); ok {
		return true // the server itself has refused; scripts check before they write
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, errNotSent)
}

// noAnswer returns the reason why a call with ctx has timed out. The client library has
// timeouts of its own, and one of them may come first: then it is errNoAnswer.
func noAnswer(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errNoAnswer
}

// lost wraps the error that ended a subscription.
func lost(err error) error {
	if err == nil {
		return errors.New("the subscription has ended")
	}
	if _, ok := valkey.IsValkeyErr(err); ok {
		return err
	}
	return fmt.Errorf("connection lost: %w", err)
}

// why adds "no answer" to a timeout of the network.
func why(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer: %w", err)
	}
	return err
}
