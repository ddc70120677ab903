"""The counter on Python and websockets, as its users write it: it sends every change to every client.

python3 counter.py CERT KEY announce|quiet wait|broadcast

"wait" sends with asyncio.wait, as the well-known tutorial does. Since Python 3.11
asyncio.wait takes tasks, and coroutines no longer. "broadcast" sends with websockets.broadcast.
"""

import asyncio
import json
import logging
import ssl
import sys

import websockets

CERT, KEY, MODE, HOW = sys.argv[1:]
USERS = set()
VALUE = 0


def users_event():
    return json.dumps({"type": "users", "count": len(USERS)})


def state_event():
    return json.dumps({"type": "state", "value": VALUE})


async def notify(message):
    if HOW == "broadcast":
        websockets.broadcast(USERS, message)
    elif USERS:
        await asyncio.wait([asyncio.create_task(user.send(message)) for user in USERS])


async def counter(websocket, path=None):
    global VALUE
    try:
        USERS.add(websocket)
        if MODE == "announce":
            await notify(users_event())
        else:
            await websocket.send(users_event())
        await websocket.send(state_event())
        async for message in websocket:
            action = json.loads(message).get("action")
            if action == "plus":
                VALUE += 1
            elif action == "minus":
                VALUE -= 1
            else:
                continue
            await notify(state_event())
    finally:
        USERS.discard(websocket)
        if MODE == "announce":
            await notify(users_event())


async def main():
    logging.disable(logging.CRITICAL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(CERT, KEY)
    # With the default ping_timeout of 20 seconds, a busy server disconnects its clients.
    async with websockets.serve(counter, "127.0.0.1", 0, ssl=context, backlog=4096, ping_timeout=120) as server:
        print("listening 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
