"""Clients of several replicas who know what became of each of their actions (.ci/replicas).

usage: load.py act NAME SECONDS CLIENTS RESTING REPLICA...   CLIENTS clients of each replica act
       load.py state NAME REPLICA...                         the value that all replicas tell

NAME is the site's, REPLICA where to connect for it. After a third of the time the clients of RESTING
(a replica, or "nobody") go on watching only, and "resting" is printed once nothing of theirs is open.

What an action's sender is told is a value, and not whose actions are in it. So clients act in turns:
each sends plus a few times, then all wait for the turn to be settled, which it is when every client
has been sent

    the value before + what was sent - what was refused.

Since clients only send plus, that value has each action in it that was not refused: it is acknowledged
to its sender. One that was counted twice, or was counted although it was refused, makes a value beyond;
one that was neither counted nor refused keeps the turn from being settled. Either is the end, with a
line "wrong: ..." and exit status 1. A turn lasts some tenths of a second. One that cannot be settled,
since a store or a network is away, goes on until it can be, and the clients go on sending.

store_undecided is no answer, and counts as none: what becomes of the action follows. What a client had
sent in the turn in which it lost its connection is lost: nobody can tell from outside whether it
counted. The turn may then end at any value between without and with it, but not below what anybody saw.
"""

import asyncio
import collections
import http.client
import json
import random
import sys
import time

import websockets

TURN = 0.25  # seconds of acting, and then at most as many of waiting, in a turn
PAUSE = 0.15  # mean seconds between two bursts of a client
BURST = 8  # actions at most, so that a client sends up to 30 a second, of which some are over -action-rate
PATIENCE = 20  # seconds in which all must be well again
USERS_PATIENCE = 15  # seconds in which clients whose replica was killed must be out of users

REFUSED = ("rate_limited", "store_unavailable")  # the codes that may come here; store_undecided is another thing


class Wrong(Exception):
    """What must not be."""


class Client:
    """One connection. What it counts is of the present turn."""

    def __init__(self, replica, ws):
        self.replica = replica
        self.ws = ws
        self.value = None  # newest
        self.users = None  # newest
        self.gone = False  # the connection has ended
        self.sent = 0
        self.refused = 0

    @property
    def open(self):
        return self.sent - self.refused


class Load:
    def __init__(self, name, replicas):
        self.name = name
        self.replicas = replicas
        self.clients = []  # those that were connected when the turn began
        self.acting = asyncio.Event()
        self.resting = None  # whose clients act no more
        self.done = False
        self.start = None  # the value when the turn began
        self.highest = None  # that anybody has seen
        self.turns = 0
        self.totals = {replica: collections.Counter() for replica in replicas}
        self.connections_lost = 0
        self.lost_at = None  # when the first connection was lost
        self.fell_after = None  # how long after that users was right everywhere

    def live(self):
        return [c for c in self.clients if not c.gone]

    def certain(self):
        """The value if nothing that is lost has counted."""
        return self.start + sum(c.open for c in self.clients if not c.gone)

    def possible(self):
        """The value if all that is lost has counted."""
        return self.start + sum(c.open for c in self.clients)

    async def read(self, client):
        """Takes what a client is sent, to the end of its connection."""
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
                    f"{client.replica} tells {value}: more than {self.start}, which it was, and {self.possible() - self.start}"
                    " actions that were sent since and not refused. Something has counted twice, or although it was refused"
                )
        elif message["code"] == "store_undecided":
            self.totals[client.replica]["undecided"] += 1
        elif message["code"] in REFUSED:
            self.totals[client.replica][message["code"]] += 1
            client.refused += 1
            if client.open < 0:
                raise Wrong(f"a client of {client.replica} was refused more than it had sent")
        else:
            raise Wrong(f"a client of {client.replica} was sent {message}")

    async def act(self, client):
        while True:
            await self.acting.wait()
            for _ in range(random.randint(1, BURST)):
                if self.done or client.gone or client.replica == self.resting:
                    return
                client.sent += 1  # before it can be answered, and even if it is not sent to the end
                try:
                    await client.ws.send('{"action":"plus"}')
                except websockets.ConnectionClosed:
                    return
            await asyncio.sleep(random.expovariate(1 / PAUSE))

    def level(self):
        """Whether the turn may be settled at what everybody sees now."""
        return (
            all(c.value == self.highest for c in self.live())
            and self.certain() <= self.highest <= self.possible()
        )

    async def settle(self, patience):
        """Ends the turn, and reports whether it could be within patience seconds."""
        deadline = time.monotonic() + patience
        while not self.level():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        if self.certain() < self.possible():
            # That value can be reached by what is lost before all else is answered. What comes later
            # than this would be found to be too much by the next turn.
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
                f"{PATIENCE} s after the last action not all is answered: the value was {self.start}, since then"
                f" {sum(c.sent for c in self.clients)} were sent and {sum(c.refused for c in self.clients)} refused,"
                f" which makes {self.certain()} to {self.possible()}; clients see: {seen}"
            )

    async def until(self, what, done, patience):
        deadline = time.monotonic() + patience
        while not done():
            if time.monotonic() > deadline:
                raise Wrong(f"not so after {patience} s: {what}")
            await asyncio.sleep(0.01)

    def users_right(self):
        return all(c.users == len(self.live()) for c in self.live())

    async def connect(self, tasks, count):
        for replica in self.replicas:
            for _ in range(count):
                # The site's name is for the Host header. Pings tell soon of a replica that is gone without a word.
                ws = await websockets.connect(f"ws://{self.name}/", host=replica, port=80, ping_interval=2, ping_timeout=10)
                client = Client(replica, ws)
                self.clients.append(client)
                tasks.create_task(self.read(client))
        await self.until(
            "all clients are at one value and see each other",
            lambda: self.highest is not None and all(c.value == self.highest for c in self.clients) and self.users_right(),
            USERS_PATIENCE,
        )
        self.start = self.highest

    async def run(self, seconds, count, resting):
        async with asyncio.TaskGroup() as tasks:
            await self.connect(tasks, count)
            for client in self.clients:
                tasks.create_task(self.act(client))
            print("acting", flush=True)
            began = time.monotonic()
            while True:
                self.acting.set()
                await asyncio.sleep(TURN)
                self.acting.clear()
                await self.settle(TURN)
                if resting in self.replicas and not self.resting and time.monotonic() > began + seconds / 3:
                    self.resting = resting
                    await self.must_settle()
                    print("resting", flush=True)
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
                f"{replica}: sent {total['sent']}, acknowledged {total['acknowledged']}, refused {total['refused']} ({refused}),"
                f" undecided for a while {total['undecided']}, lost {total['lost']}"
            )
            print(f"{replica} store errors:", total["store_unavailable"] + total["undecided"])
        for key in ("sent", "acknowledged", "refused", "undecided", "lost"):
            print(f"{key}:", every[key])
        print("connections lost:", self.connections_lost)
        print("turns:", self.turns)
        print("value:", self.start)
        if self.fell_after:
            print(f"users fell after: {self.fell_after:.1f} s")


def act(name, seconds, clients, resting, *replicas):
    async def run():
        await Load(name, replicas).run(float(seconds), int(clients), resting)

    try:
        asyncio.run(run())
    except ExceptionGroup as group:
        wrong = group.subgroup(Wrong)
        if not wrong:
            raise
        print("wrong:", wrong.exceptions[0])
        sys.exit(1)


def state(name, *replicas):
    """Waits for the replicas to tell the same, since the others hear of a change a moment later."""
    deadline = time.monotonic() + PATIENCE
    while True:
        told = {}
        for replica in replicas:
            connection = http.client.HTTPConnection(replica, timeout=PATIENCE)
            connection.request("GET", "/state", headers={"Host": name})
            answer = connection.getresponse()
            told[replica] = answer.read().decode().strip() if answer.status == 200 else f"{answer.status}"
        if len(set(told.values())) == 1 and answer.status == 200:
            print("value:", json.loads(told[replicas[0]])["value"])
            return
        if time.monotonic() > deadline:
            print("wrong: the replicas tell", told)
            sys.exit(1)
        time.sleep(0.1)


COMMANDS = {f.__name__: f for f in (act, state)}


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in COMMANDS:
        raise SystemExit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])


main()
