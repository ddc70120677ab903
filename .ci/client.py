"""A client that shares no code with plusminus, for the main job (.ci/main-job).

usage: client.py fetch URL ROOT       print what an https address answers, e.g. the test CA's root
       client.py play URL ROOT        two clients: one acts, one watches
       client.py look URL ROOT        one client: print the certificate and the value
       client.py refuse URL           connect trusting the system's roots only: must be refused by us
       client.py page URL ROOT        the page is there
       client.py redirect URL TO      plain http leads to TO
       client.py stay URL ROOT        stay connected and print how the server says goodbye

ROOT is a PEM file, and the only root that the client trusts; chain and name are always verified.
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

PATIENCE = 15  # seconds for any one message; all of this happens on one machine


def trusting(root):
    """A context that trusts root alone (None: the system's roots)."""
    context = ssl.create_default_context(cafile=root)
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    return context


def names(rdns):
    return ", ".join(f"{key}={value}" for rdn in rdns for key, value in rdn) or "(empty)"


def print_leaf(ws):
    """Prints what the handshake verified."""
    tls = ws.transport.get_extra_info("ssl_object")
    leaf = tls.getpeercert()
    print("protocol:", tls.version())
    print("subject:", names(leaf["subject"]))
    print("valid for:", ", ".join(value for _, value in leaf["subjectAltName"]))
    print("issuer:", names(leaf["issuer"]))
    print("serial:", leaf["serialNumber"])
    print("expires:", leaf["notAfter"])


class Seen:
    """One client: everything that it got, in order."""

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
        """Reads until nothing has come for a second."""
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
    # The player waits for each of its actions, so it sees each value once. The watcher may see values
    # merged, but in order, and the newest last.
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
            raise SystemExit("connected, although nobody here knows the issuer")
    except ssl.SSLCertVerificationError as err:
        print("refused:", err.verify_message)


def fetch(url, root):
    """Tries for a while: the server may have been started a moment ago."""
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
