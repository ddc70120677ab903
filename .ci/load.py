"""Clients of several replicas that count the outcome of each of their actions, for .ci/replicas.

usage: load.py act NAME SECONDS CLIENTS RESTING COUNTERS REPLICA...   run CLIENTS acting clients of each counter and replica
       load.py state NAME COUNTERS REPLICA...                         print the values that all replicas report

NAME is the site's name, REPLICA the address to connect to. COUNTERS are names with commas between them; "default" is the
default counter. After a third of the time the clients of RESTING
(a replica, or "nobody") stop acting and only watch. When none of their actions is open, the program prints
"resting".

The server sends the sender of an action the new value, but does not say whose actions the value contains. So
clients act in turns. Each client sends plus a few times, then all wait until the turn is settled. A turn is settled
when every client has been sent this value:

    the value before the turn + actions sent - actions refused

Clients only send plus. So that value contains every action that was not refused: these actions are acknowledged.
An action that counts twice, or counts although it was refused, makes the value too high. An action that neither
counts nor is refused keeps the turn from settling. In both cases the program prints a line "wrong: ..." and exits
with status 1. A turn takes some tenths of a second. While a store or a network is down a turn cannot settle; it
then goes on, and the clients go on sending, until it settles.

store_undecided is not an answer: the outcome of the action follows. If a client loses its connection, the actions
that it sent in that turn are lost: from outside, it is unknown whether they counted. The turn may then end at any
value from "none of them counted" to "all of them counted", but not below a value that a client has seen.
"""

import asyncio
import collections
import http.client
import json
import random
import sys
import time

import websockets

TURN = 0.25  # seconds in which clients act, and then at most as many of waiting for the turn to settle
PAUSE = 0.15  # mean seconds between two bursts of a client
BURST = 8  # actions at most; a client then sends up to 30 a second, and some exceed -action-rate
PATIENCE = 20  # seconds in which every open action must be answered
USERS_PATIENCE = 15  # seconds in which users must drop by the clients of a killed replica

REFUSED = ("rate_limited", "store_unavailable")  # the error codes of refused actions; store_undecided is not one


class Wrong(Exception):
    """The server broke a promise."""


class Client:
    """One connection. sent and refused count the actions of the current turn."""

    def __init__(self, replica, ws):
        self.replica = replica
        self.ws = ws
        self.value = None  # newest that was received
        self.users = None  # newest that was received
        self.gone = False  # the connection has ended
        self.sent = 0
        self.refused = 0

    @property
    def open(self):
        return self.sent - self.refused


class Progress:
    """Prints a word when all loads have reached it."""

    def __init__(self, loads):
        self.loads = loads
        self.reached = collections.Counter()

    def reach(self, word):
        self.reached[word] += 1
        if self.reached[word] == self.loads:
            print(word, flush=True)


def path_of(counter):
    return "/" if counter == "default" else f"/c/{counter}"


class Load:
    """The clients of one counter."""

    def __init__(self, name, counter, replicas, progress):
        self.name = name
        self.counter = counter
        self.replicas = replicas
        self.progress = progress
        self.clients = []  # connected when the turn began
        self.acting = asyncio.Event()
        self.resting = None  # the replica whose clients only watch
        self.done = False
        self.start = None  # the value when the turn began
        self.highest = None  # the highest value that a client has seen
        self.turns = 0
        self.totals = {replica: collections.Counter() for replica in replicas}
        self.connections_lost = 0
        self.lost_at = None  # when the first connection was lost
        self.fell_after = None  # seconds from then until all clients had the right users

    def live(self):
        return [c for c in self.clients if not c.gone]

    def certain(self):
        """Returns the value if no lost action has counted."""
        return self.start + sum(c.open for c in self.clients if not c.gone)

    def possible(self):
        """Returns the value if all lost actions have counted."""
        return self.start + sum(c.open for c in self.clients)

    async def read(self, client):
        """Processes a client's messages until its connection ends."""
        try:
            async for text in client.ws:
                self.take(client, json.loads(text))
        except websockets.ConnectionClosed:
            pass
        client.gone = True
        if self.done:
            return
        self.connections_lost += 1
        self.lost_at = self.lost_at or time.monotonic()
        if not self.live():
            raise Wrong("no client is left")

    def take(self, client, message):
        if message["type"] == "users":
            client.users = message["count"]
        elif message["type"] == "state":
            value = message["value"]
            if client.value is not None and value < client.value:
                raise Wrong(f"a client of {client.replica} saw {client.value} and then {value}")
            client.value = value
            self.highest = value if self.highest is None else max(self.highest, value)
            if self.start is not None and value > self.possible():
                raise Wrong(
                    f"{client.replica} sent the value {value} of {self.counter}: more than {self.start} before the turn plus {self.possible() - self.start}"
                    " actions that were sent and not refused. An action counted twice, or counted although it was refused"
                )
        elif message["code"] == "store_undecided":
            self.totals[client.replica]["undecided"] += 1
        elif message["code"] in REFUSED:
            self.totals[client.replica][message["code"]] += 1
            client.refused += 1
            if client.open < 0:
                raise Wrong(f"a client of {client.replica} got more refusals than it sent actions")
        else:
            raise Wrong(f"a client of {client.replica} was sent {message}")

    async def act(self, client):
        while True:
            await self.acting.wait()
            for _ in range(random.randint(1, BURST)):
                if self.done or client.gone or client.replica == self.resting:
                    return
                client.sent += 1  # before an answer can come, and even if sending fails
                try:
                    await client.ws.send('{"action":"plus"}')
                except websockets.ConnectionClosed:
                    return
            await asyncio.sleep(random.expovariate(1 / PAUSE))

    def level(self):
        """Reports whether all clients see one value at which the turn may settle."""
        return (
            all(c.value == self.highest for c in self.live())
            and self.certain() <= self.highest <= self.possible()
        )

    async def settle(self, patience):
        """Ends the turn, and reports whether it settled within patience seconds."""
        deadline = time.monotonic() + patience
        while not self.level():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        if self.certain() < self.possible():
            # Lost actions can raise the value to that level before all other actions are answered. The next turn
            # finds actions that count after this wait.
            await asyncio.sleep(1)
            if not self.level():
                return False
        for c in self.clients:
            total = self.totals[c.replica]
            total["sent"] += c.sent
            total["refused"] += c.refused
            total["lost" if c.gone else "acknowledged"] += c.open
            c.sent = c.refused = 0
        self.start = self.highest
        self.clients = self.live()
        self.turns += 1
        return True

    async def must_settle(self):
        self.acting.clear()
        if not await self.settle(PATIENCE):
            seen = ", ".join(f"{r} {sorted({c.value for c in self.live() if c.replica == r})}" for r in self.replicas)
            raise Wrong(
                f"{self.counter}: actions are unanswered {PATIENCE} s after the last one was sent: the value was {self.start}, since then"
                f" {sum(c.sent for c in self.clients)} actions were sent and {sum(c.refused for c in self.clients)} refused,"
                f" want {self.certain()} to {self.possible()}; clients see: {seen}"
            )

    async def until(self, what, done, patience):
        deadline = time.monotonic() + patience
        while not done():
            if time.monotonic() > deadline:
                raise Wrong(f"not true after {patience} s: {what}")
            await asyncio.sleep(0.01)

    def users_right(self):
        return all(c.users == len(self.live()) for c in self.live())

    async def connect(self, tasks, count):
        for replica in self.replicas:
            for _ in range(count):
                # The Host header needs the site's name. Pings soon find a replica that ended without closing.
                ws = await websockets.connect(f"ws://{self.name}{path_of(self.counter)}", host=replica, port=80, ping_interval=2, ping_timeout=10)
                client = Client(replica, ws)
                self.clients.append(client)
                tasks.create_task(self.read(client))
        await self.until(
            "all clients see one value and the right users",
            lambda: self.highest is not None and all(c.value == self.highest for c in self.clients) and self.users_right(),
            USERS_PATIENCE,
        )
        self.start = self.highest

    async def run(self, seconds, count, resting):
        async with asyncio.TaskGroup() as tasks:
            await self.connect(tasks, count)
            for client in self.clients:
                tasks.create_task(self.act(client))
            self.progress.reach("acting")
            began = time.monotonic()
            while True:
                self.acting.set()
                await asyncio.sleep(TURN)
                self.acting.clear()
                await self.settle(TURN)
                if resting in self.replicas and not self.resting and time.monotonic() > began + seconds / 3:
                    self.resting = resting
                    await self.must_settle()
                    self.progress.reach("resting")
                if self.lost_at and not self.fell_after:
                    took = time.monotonic() - self.lost_at
                    if self.users_right():
                        self.fell_after = took
                    elif took > USERS_PATIENCE:
                        raise Wrong(f"{took:.1f} s after connections were lost, users is {[c.users for c in self.live()]}")
                elif time.monotonic() > began + seconds:
                    break
            await self.must_settle()
            self.done = True
            self.acting.set()
            for client in self.clients:
                await client.ws.close()
        self.report()

    def report(self):
        every = collections.Counter()
        for replica, total in self.totals.items():
            every.update(total)
            refused = ", ".join(f"{code} {total[code]}" for code in REFUSED)
            print(
                f"{self.counter} {replica}: sent {total['sent']}, acknowledged {total['acknowledged']}, refused {total['refused']} ({refused}),"
                f" undecided for a while {total['undecided']}, lost {total['lost']}"
            )
            print(f"{self.counter} {replica} store errors:", total["store_unavailable"] + total["undecided"])
        for key in ("sent", "acknowledged", "refused", "undecided", "lost"):
            print(f"{self.counter} {key}:", every[key])
        print(f"{self.counter} connections lost:", self.connections_lost)
        print(f"{self.counter} turns:", self.turns)
        print(f"{self.counter} value:", self.start)
        if self.fell_after:
            print(f"{self.counter} users fell after: {self.fell_after:.1f} s")


def act(name, seconds, clients, resting, counters, *replicas):
    async def run():
        progress = Progress(len(counters.split(",")))
        async with asyncio.TaskGroup() as tasks:
            for counter in counters.split(","):
                tasks.create_task(Load(name, counter, replicas, progress).run(float(seconds), int(clients), resting))

    try:
        asyncio.run(run())
    except ExceptionGroup as group:
        wrong = group.subgroup(Wrong)
        if not wrong:
            raise
        while isinstance(wrong, ExceptionGroup):
            wrong = wrong.exceptions[0]
        print("wrong:", wrong)
        sys.exit(1)


def state(name, counters, *replicas):
    for counter in counters.split(","):
        state_of(name, counter, replicas)


def state_of(name, counter, replicas):
    """Waits until all replicas report the same value, because they learn of a change at different times."""
    path = "/state" if counter == "default" else f"/c/{counter}/state"
    deadline = time.monotonic() + PATIENCE
    while True:
        told = {}
        for replica in replicas:
            connection = http.client.HTTPConnection(replica, timeout=PATIENCE)
            connection.request("GET", path, headers={"Host": name})
            answer = connection.getresponse()
            told[replica] = answer.read().decode().strip() if answer.status == 200 else f"{answer.status}"
        if len(set(told.values())) == 1 and answer.status == 200:
            print(f"{counter} value:", json.loads(told[replicas[0]])["value"])
            return
        if time.monotonic() > deadline:
            print(f"wrong: the replicas report {told} for {counter}")
            sys.exit(1)
        time.sleep(0.1)


COMMANDS = {f.__name__: f for f in (act, state)}


def main():
    if len(sys.argv) < 5 or sys.argv[1] not in COMMANDS:
        raise SystemExit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])


main()
