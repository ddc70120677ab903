package hub

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSocketOfStream checks that expectAcks sets the option in the kernel, and that finish closes only the
// direction to the peer.
func TestSocketOfStream(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc, err := (connListener{ln}).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := nc.(*Conn)
	c.neverWait()
	c.expectAcks(1500 * time.Millisecond)
	got := 0
	if err := c.raw.Control(func(fd uintptr) {
		got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil || got != 1500 {
		t.Errorf("TCP_USER_TIMEOUT = %d, %v, want 1500", got, err)
	}
	c.finish()
	buf := make([]byte, 1)
	if n, err := peer.Read(buf); n != 0 || err == nil {
		t.Errorf("after finish, the peer's Read = %d, %v, want 0 and an error", n, err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); err != nil || buf[0] != 'x' {
		t.Errorf("after finish, Read = %q, %v, want %q", buf, err, "x")
	}
}
