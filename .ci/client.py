"""A client that shares no code with plusminus, for the main job (.ci/main-job).

usage: client.py fetch URL ROOT       print the body of an https response, for example the test CA's root
       client.py play URL ROOT        run two clients: one acts, one watches
       client.py look URL ROOT        connect one client; print the certificate and the value
       client.py refuse URL           trust the system's roots only; this client must refuse the certificate
       client.py page URL ROOT        check that the page is served
       client.py redirect URL TO      check that plain http redirects to TO
       client.py stay URL ROOT        stay connected; print the close code that the server sends

ROOT is a PEM file with the only root that the client trusts. The client always verifies chain and name.
"""

import asyncio
import http.client
import json
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import websockets

PATIENCE = 15  # seconds to wait for one message; everything runs on one machine


def trusting(root):
    """Returns a TLS context that trusts only root (None: the system's roots)."""
    context = ssl.create_default_context(cafile=root)
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    return context


def names(rdns):
    return ", ".join(f"{key}={value}" for rdn in rdns for key, value in rdn) or "(empty)"


def print_leaf(ws):
    """Prints the certificate that the handshake verified."""
    tls = ws.transport.get_extra_info("ssl_object")
    leaf = tls.getpeercert()
    print("protocol:", tls.version())
    print("subject:", names(leaf["subject"]))
    print("valid for:", ", ".join(value for _, value in leaf["subjectAltName"]))
    print("issuer:", names(leaf["issuer"]))
    print("serial:", leaf["serialNumber"])
    print("expires:", leaf["notAfter"])


class Seen:
    """The messages that one client received, in order."""

    def __init__(self, ws):
        self.ws = ws
        self.users = []
        self.values = []

    async def next(self):
        message = json.loads(await asyncio.wait_for(self.ws.recv(), PATIENCE))
        if message["type"] == "users":
            self.users.append(message["count"])
        elif message["type"] == "state":
            self.values.append(message["value"])
        else:
            raise SystemExit(f"unexpected message: {message}")

    async def until(self, done):
        while not done():
            await self.next()

    async def drain(self):
        """Reads until no message has come for a second."""
        while True:
            try:
                await asyncio.wait_for(self.next(), 1)
            except asyncio.TimeoutError:
                return


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(value in rest for value in part)


async def play(url, root):
    async with websockets.connect(url, ssl=trusting(root)) as a:
        print_leaf(a)
        watcher = Seen(a)
        await watcher.until(lambda: watcher.values)
        async with websockets.connect(url, ssl=trusting(root)) as b:
            player = Seen(b)
            await player.until(lambda: player.values)
            await watcher.until(lambda: watcher.users[-1] == 2)
            expected = [player.values[-1]]
            for action, delta in (("plus", 1), ("plus", 1), ("plus", 1), ("minus", -1)):
                await b.send(json.dumps({"action": action}))
                expected.append(expected[-1] + delta)
                await player.until(lambda: player.values[-1] == expected[-1])
            await watcher.drain()
        await watcher.until(lambda: watcher.users[-1] == 1)
    print("player clicked plus, plus, plus, minus and saw:", *player.values)
    print("watcher saw:", *watcher.values, "and users:", *watcher.users)
    print("value:", player.values[-1])
    # The player waits after each action, so it sees each value once. For the watcher, values may merge, but they
    # come in order, and the newest comes last.
    assert player.values == expected, expected
    assert is_subsequence(watcher.values, expected) and watcher.values[-1] == expected[-1], expected


async def look(url, root):
    async with websockets.connect(url, ssl=trusting(root)) as ws:
        print_leaf(ws)
        client = Seen(ws)
        await client.until(lambda: client.values)
        print("value:", client.values[-1])


async def stay(url, root):
    async with websockets.connect(url, ssl=trusting(root)) as ws:
        client = Seen(ws)
        await client.until(lambda: client.values)
        print("connected", flush=True)
        try:
            while True:
                await ws.recv()
        except websockets.ConnectionClosed as closed:
            print("close code:", closed.rcvd.code if closed.rcvd else "none", closed.rcvd.reason if closed.rcvd else "")


async def refuse(url):
    try:
        async with websockets.connect(url, ssl=trusting(None)):
            raise SystemExit("connected, although no root here has issued the certificate")
    except ssl.SSLCertVerificationError as err:
        print("refused:", err.verify_message)


def fetch(url, root):
    """Prints the body of a response. It tries for 30 s, because the server may have just started."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, context=trusting(root), timeout=PATIENCE) as answer:
                print(answer.read().decode(), end="")
                return
        except urllib.error.URLError as err:
            if time.monotonic() > deadline or isinstance(err.reason, ssl.SSLCertVerificationError):
                raise
            time.sleep(0.5)


def page(url, root):
    with urllib.request.urlopen(url, context=trusting(root), timeout=PATIENCE) as answer:
        body = answer.read()
        print("page:", answer.status, answer.headers["Content-Type"], len(body), "bytes")
        assert answer.headers["Content-Type"].startswith("text/html")


def redirect(url, to):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    connection.request("GET", parts.path)
    answer = connection.getresponse()
    print("redirect:", answer.status, answer.headers["Location"])
    assert answer.status in (301, 302, 307, 308) and answer.headers["Location"] == to


COMMANDS = {f.__name__: f for f in (fetch, play, look, refuse, page, redirect, stay)}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        raise SystemExit(__doc__)
    command = COMMANDS[sys.argv[1]]
    if asyncio.iscoroutinefunction(command):
        asyncio.run(command(*sys.argv[2:]))
    else:
        command(*sys.argv[2:])


main()
