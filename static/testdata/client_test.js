// Tests of client.js on a fake clock, run in Chromium by TestClient. What they find goes into the page.

import { connect } from "/client.js";

// Env is a stand-in for the window: time moves only in tick, and random is always 1, so that every
// wait is the longest of its range.
class Env {
  clock = 1000;
  timers = new Map();
  lastTimer = 0;
  sockets = [];
  listeners = new Map();
  navigator = { onLine: true };
  Math = { random: () => 1 };
  performance = { now: () => this.clock };
  document = { visibilityState: "visible", ...this.target() };

  constructor() {
    const env = this;
    this.WebSocket = class {
      readyState = 0;
      sent = [];
      constructor(url) { this.url = url; env.sockets.push(this); }
      send(data) { this.sent.push(data); }
      close() { this.readyState = 2; this.closed = true; }
      open() { this.readyState = 1; this.onopen(); }
      receive(m) { this.onmessage?.({ data: typeof m === "string" ? m : JSON.stringify(m) }); }
      drop(code = 1006) { this.readyState = 3; this.onclose({ code }); }
    };
    Object.assign(this, this.target());
  }

  target() {
    return {
      addEventListener: (type, f) => this.listeners.set(type, f),
      removeEventListener: (type, f) => this.listeners.get(type) === f && this.listeners.delete(type),
    };
  }

  setTimeout = (f, ms) => { this.timers.set(++this.lastTimer, [this.clock + ms, f]); return this.lastTimer; };
  clearTimeout = (id) => { this.timers.delete(id); };

  tick(ms) {
    const end = this.clock + ms;
    for (;;) {
      const due = [...this.timers].filter(([, [at]]) => at <= end).sort((a, b) => a[1][0] - b[1][0])[0];
      if (!due) break;
      const [id, [at, f]] = due;
      this.timers.delete(id);
      this.clock = at;
      f();
    }
    this.clock = end;
  }

  get socket() { return this.sockets.at(-1); }

  start(url = "wss://counter.example/") {
    this.log = [];
    this.status = undefined;
    this.client = connect(url, {
      state: (v) => this.log.push(["state", v]),
      users: (n) => this.log.push(["users", n]),
      error: (e) => this.log.push(["error", e.code, e.message]),
      status: (s) => { this.status = s; },
    }, this);
    return this;
  }

  // wait is how long the client means to wait, in milliseconds.
  get wait() { return this.status.state === "waiting" ? this.status.nextTry - this.clock : undefined; }
}

const failures = [];
let current;

function equal(got, want, what) {
  const [g, w] = [JSON.stringify(got), JSON.stringify(want)];
  if (g !== w) failures.push(`${current}: ${what} = ${g}, want ${w}`);
}

const tests = {
  "messages reach the callbacks, unknown ones do not"() {
    const env = new Env().start();
    env.socket.open();
    for (const m of [{ type: "users", count: 2 }, { type: "state", value: -3, extra: 1 }, { type: "new" },
      "no JSON", "null", "[]", { type: "error", code: "rate", message: "Too fast." }]) env.socket.receive(m);
    equal(env.log, [["users", 2], ["state", -3], ["error", "rate", "Too fast."]], "calls");
  },

  "send says whether it sent"() {
    const env = new Env().start();
    equal(env.client.send("plus"), false, "send while connecting");
    env.socket.open();
    equal(env.client.send("plus"), true, "send while open");
    equal(env.socket.sent, ['{"action":"plus"}'], "sent");
    env.socket.readyState = 2;
    equal(env.client.send("plus"), false, "send while closing");
    env.socket.drop();
    equal(env.client.send("plus"), false, "send while waiting");
  },

  "the limit doubles from 0.5 s to 30 s"() {
    const env = new Env().start();
    const waits = [];
    for (let i = 0; i < 8; i++) {
      env.socket.drop();
      waits.push(env.wait);
      equal(env.status.why, "unreachable", "why");
      env.tick(env.wait - 1);
      equal(env.status.state, "waiting", "state just before the next try");
      env.tick(1);
      equal(env.status.state, "connecting", "state at the next try");
    }
    equal(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000], "waits");
  },

  "full jitter reaches down to 0"() {
    const env = new Env().start();
    env.Math.random = () => 0;
    env.socket.drop();
    equal(env.wait, 0, "wait");
  },

  "only 10 s of calm reset the limit"() {
    const env = new Env().start();
    for (const [calm, wait] of [[0, 500], [9_999, 1000], [10_000, 500], [0, 1000]]) {
      env.socket.open();
      env.tick(calm);
      env.socket.drop();
      equal(env.wait, wait, `wait after ${calm} ms`);
      equal(env.status.why, "lost", "why");
      env.tick(wait);
    }
  },

  "close codes that ask for a longer wait get it"() {
    for (const [code, least, most, why] of [[1012, 5_000, 30_000, "restarting"], [1013, 30_000, 60_000, "busy"],
      [1008, 30_000, 60_000, "refused"], [1001, 0, 500, "restarting"]]) {
      for (const [random, want] of [[0, least], [1, most]]) {
        const env = new Env().start();
        env.Math.random = () => random;
        env.socket.open();
        env.socket.drop(code);
        equal([env.wait, env.status.why], [want, why], `wait and why after ${code}`);
      }
    }
  },

  "a handshake that hangs is given up after 10 s"() {
    const env = new Env().start();
    env.tick(9_999);
    equal(env.status.state, "connecting", "state");
    env.tick(1);
    equal([env.status.state, env.status.why, env.socket.closed], ["waiting", "unreachable", true], "state, why, closed");
  },

  "an action without an answer for 10 s ends the connection"() {
    const env = new Env().start();
    env.socket.open();
    env.client.send("plus");
    env.tick(9_999);
    env.socket.receive({ type: "state", value: 1 });
    env.tick(60_000);
    equal(env.status.state, "open", "state after an answer");
    env.client.send("plus");
    env.tick(5_000);
    env.client.send("plus");
    env.tick(5_000);
    equal([env.status.state, env.status.why], ["waiting", "silent"], "state and why without one");
    equal(env.status.unanswered, true, "unanswered");
    env.tick(500);
    equal(env.status.unanswered, false, "unanswered of the next try");
    equal(env.sockets[0].onmessage, null, "onmessage of the old socket");
  },

  "an action that a lost connection may have swallowed is told"() {
    for (const [act, answer, want] of [[false, false, false], [true, false, true], [true, true, false]]) {
      const env = new Env().start();
      env.socket.open();
      if (act) env.client.send("minus");
      if (answer) env.socket.receive({ type: "state", value: -1 });
      env.socket.drop();
      equal(env.status.unanswered, want, `unanswered with action ${act}, answer ${answer}`);
    }
  },

  "no tries while offline, one when online"() {
    const env = new Env().start();
    env.socket.open();
    env.navigator.onLine = false;
    env.listeners.get("offline")();
    equal([env.status.state, env.socket.closed], ["offline", true], "state, closed");
    env.tick(3_600_000);
    equal(env.sockets.length, 1, "sockets");
    env.navigator.onLine = true;
    env.listeners.get("online")();
    equal([env.sockets.length, env.status.state], [2, "connecting"], "sockets, state");
  },

  "offline at the start, and between two tries"() {
    const env = new Env();
    env.navigator.onLine = false;
    env.start();
    equal([env.status.state, env.sockets.length], ["offline", 0], "state, sockets");
    env.client.retry();
    equal(env.sockets.length, 1, "sockets after retry");
    env.socket.drop();
    equal(env.status.state, "offline", "state after a failed retry");
  },

  "this machine needs no network"() {
    for (const [url, state] of [["ws://localhost:8080/", "connecting"], ["wss://a.localhost/", "connecting"],
      ["wss://127.0.0.1:8443/", "connecting"], ["wss://[::1]:8443/", "connecting"],
      ["wss://localhost.example/", "offline"], ["wss://127.example/", "offline"]]) {
      const env = new Env();
      env.navigator.onLine = false;
      env.start(url);
      equal(env.status.state, state, `state for ${url}`);
    }
  },

  "a page that becomes visible, and retry, do not wait"() {
    const env = new Env().start();
    env.socket.drop(1013);
    env.document.visibilityState = "hidden";
    env.listeners.get("visibilitychange")();
    equal(env.status.state, "waiting", "state while hidden");
    env.document.visibilityState = "visible";
    env.listeners.get("visibilitychange")();
    equal(env.status.state, "connecting", "state when seen");
    env.socket.drop(1013);
    env.client.retry();
    equal(env.status.state, "connecting", "state after retry");
    env.client.retry();
    env.listeners.get("visibilitychange")();
    equal(env.sockets.length, 3, "sockets"); // one try at a time
  },

  "close is for good"() {
    const env = new Env().start();
    env.socket.open();
    env.client.close();
    env.client.retry();
    env.tick(3_600_000);
    equal([env.status.state, env.sockets.length, env.timers.size, env.listeners.size, env.client.send("plus")],
      ["closed", 1, 0, 0, false], "state, sockets, timers, listeners, send");
  },
};

for (const [name, test] of Object.entries(tests)) {
  current = name;
  try {
    test();
  } catch (err) {
    failures.push(`${name}: ${err.stack}`);
  }
}
document.body.textContent = failures.length ? failures.join("\n") : `${Object.keys(tests).length} passed`;
