// The connection to a plusminus server, without a page: import { connect } from "./client.js".

// Full jitter: a wait is anywhere between 0 and a limit that doubles from minDelay to maxDelay, so
// that the clients of a server that went away do not all come back at the same moment.
const minDelay = 500;
const maxDelay = 30_000;

// A connection that lasted this long was a success: the limit starts again from minDelay. One that
// is lost sooner, say because the server lets us in and then falls over, counts as a failure.
const calm = 10_000;

// For the opening handshake, and for the answer to an action (each gets a state or an error).
// A browser would wait minutes on a network that swallows packets, and JavaScript sees no pings.
const patience = 10_000;

// Close codes that ask for a longer wait, as [least, most] milliseconds.
// 1012: "should reconnect using a randomized delay of 5 - 30s";
// 1013: reconnect "upon user action", which is retry(); without one we wait at least a full maxDelay.
// Both: https://www.ietf.org/mail-archive/web/hybi/current/msg09649.html
// 1008 is our own doing, and doing it again soon would not help.
const longer = { 1008: [30_000, 60_000], 1012: [5_000, 30_000], 1013: [30_000, 60_000] };

// Why there is no connection, by close code; any other code is "lost", or "unreachable" if the
// connection never opened.
const reasons = { 1001: "restarting", 1008: "refused", 1012: "restarting", 1013: "busy" };

/**
 * connect keeps a connection to url ("wss://host/") until close is called.
 *
 * on holds the callbacks, each optional:
 *   state(value)   the value is now this
 *   users(count)   so many clients are connected, this one included
 *   error({code, message})   the server refused an action
 *   status({state, why, nextTry, unanswered})   the connection changed; unanswered says that it ended
 *   after an action and before any answer: whether that action counted is unknown. state is one of
 *     connecting   why is as it was in waiting, absent the first time
 *     open         send works
 *     waiting      why is unreachable, lost, silent (an action got no answer for 10 s), restarting,
 *                  busy, or refused; nextTry is on the performance.now() clock
 *     offline      the browser has no network; tries again when it has
 *     closed       close was called
 *
 * env is the window, or a stand-in for tests; outside a browser the parts about network and
 * visibility do nothing.
 *
 * @returns {{send: (action: string) => boolean, retry: () => void, close: () => void}}
 *   send reports whether the action was handed to an open connection; false means it was not sent
 *   and never will be. retry tries now, even if the browser believes that it is offline.
 */
export function connect(url, on = {}, env = globalThis) {
  let socket; // the one that we believe in, or undefined
  let state;
  let why;
  let failures = 0;
  let openedAt; // undefined unless the current socket has been open
  let timer; // the next try, or the end of our patience: never both
  let unanswered = false; // of the last connection
  const now = () => env.performance.now();

  // The server on one's own machine can be reached without any network.
  const local = /^wss?:\/\/(localhost|[^/:]+\.localhost|127\.[\d.]+|\[::1\])(:|\/|$)/i.test(url);
  const offline = () => !local && env.navigator?.onLine === false;

  function enter(next, nextTry) {
    state = next;
    on.status?.({ state, why, nextTry, unanswered });
    unanswered = false;
  }

  function setTimer(f, ms) {
    env.clearTimeout(timer);
    timer = f && env.setTimeout(f, ms);
  }

  function open() {
    openedAt = undefined;
    const s = socket = new env.WebSocket(url);
    setTimer(() => lose(), patience);
    s.onopen = () => {
      setTimer();
      openedAt = now();
      why = undefined;
      enter("open");
    };
    s.onmessage = (event) => {
      setTimer();
      receive(event.data);
    };
    s.onclose = (event) => lose(event.code);
    enter("connecting");
  }

  // forget lets go of the socket at once: the closing handshake of a dead connection takes minutes,
  // and nothing that it still brings may be mistaken for news.
  function forget() {
    unanswered = state === "open" && timer !== undefined;
    setTimer();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    socket = undefined;
  }

  function lose(code, because) {
    forget();
    why = because ?? reasons[code] ?? (openedAt === undefined ? "unreachable" : "lost");
    if (openedAt !== undefined && now() - openedAt >= calm) failures = 0;
    if (offline()) {
      why = undefined;
      enter("offline");
      return;
    }
    const [least, most] = longer[code] ?? [0, Math.min(maxDelay, minDelay * 2 ** failures)];
    failures++;
    const delay = least + env.Math.random() * (most - least);
    setTimer(open, delay);
    enter("waiting", now() + delay);
  }

  function receive(data) {
    let m;
    try {
      m = JSON.parse(data);
    } catch {
      return;
    }
    switch (m?.type) { // an unknown type is from a newer server, and not for us
      case "state": on.state?.(m.value); break;
      case "users": on.users?.(m.count); break;
      case "error": on.error?.({ code: m.code, message: m.message }); break;
    }
  }

  function send(action) {
    if (state !== "open" || socket.readyState !== 1) return false;
    socket.send(JSON.stringify({ action }));
    if (timer === undefined) setTimer(() => lose(undefined, "silent"), patience);
    return true;
  }

  function retry() {
    if (state === "waiting" || state === "offline") open();
  }

  const online = () => retry();
  // After a loss of the network the socket may look open for minutes and swallow what is sent.
  const cutOff = () => {
    if (!offline() || state === "offline") return;
    forget();
    why = undefined;
    enter("offline");
  };
  // Browsers slow down the timers of hidden pages, so the wait may be long over. Someone is looking now.
  const seen = () => {
    if (env.document.visibilityState === "visible" && state === "waiting") open();
  };
  const listeners = [[env, "online", online], [env, "offline", cutOff], [env.document, "visibilitychange", seen]];
  for (const [target, type, f] of listeners) target?.addEventListener?.(type, f);

  function close() {
    forget();
    for (const [target, type, f] of listeners) target?.removeEventListener?.(type, f);
    why = undefined;
    enter("closed");
  }

  if (offline()) enter("offline");
  else open();
  return { send, retry, close };
}
