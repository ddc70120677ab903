// Tests of client.js on a fake clock. TestClient runs them in Chromium and reads the results from the page.

import { connect } from "/client.js";

// Env is a fake window. Time moves only in tick. Math.random returns 1, so that every wait is the longest
// of its range.
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
	location = { origin: "https://counter.example" };
	asked = []; // [URL, mode] of each fetch
	answer = undefined; // the JSON of GET /state, or undefined if the fetch fails

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
			addEventListener: (type, f, { signal }) => {
				this.listeners.set(type, f);
				signal.addEventListener("abort", () => this.listeners.delete(type));
			},
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

	fetch = async (url, { mode }) => {
		this.asked.push([String(url), mode]);
		if (!this.answer) throw new TypeError("no answer");
		return mode === "same-origin" ? { ok: true, json: async () => this.answer } : { ok: false }; // opaque
	};

	// pass calls tick, then lets promises settle.
	async pass(ms) {
		this.tick(ms);
		await new Promise((done) => setTimeout(done));
	}

	show(visibilityState) {
		this.document.visibilityState = visibilityState;
		this.listeners.get("visibilitychange")();
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

	// wait returns the time until the client's next try in milliseconds, or undefined if none is planned.
	get wait() { return this.status.state === "waiting" ? this.status.nextTry - this.clock : undefined; }
}

const failures = [];
let current;

function equal(got, want, what) {
	const [g, w] = [JSON.stringify(got), JSON.stringify(want)];
	if (g !== w) failures.push(`${current}: ${what} = ${g}, want ${w}`);
}

const tests = {
	"known messages reach the callbacks, unknown ones do not"() {
		const env = new Env().start();
		env.socket.open();
		for (const m of [{ type: "users", count: 2 }, { type: "state", value: -3, extra: 1 }, { type: "new" },
			"no JSON", "null", "[]", { type: "error", code: "rate", message: "Too fast." }]) env.socket.receive(m);
		equal(env.log, [["users", 2], ["state", -3], ["error", "rate", "Too fast."]], "calls");
	},

	"send reports whether it sent the action"() {
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

	"the longest wait doubles from 0.5 s to 30 s"() {
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

	"the shortest wait is 0"() {
		const env = new Env().start();
		env.Math.random = () => 0;
		env.socket.drop();
		equal(env.wait, 0, "wait");
	},

	"only a connection that lasted 10 s resets the longest wait"() {
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

	"some close codes decide the wait"() {
		for (const [code, least, most, why] of [[1012, 0, 2_000, "restarting"], [1013, 30_000, 60_000, "busy"],
			[1008, 30_000, 60_000, "refused"], [1001, 0, 2_000, "restarting"]]) {
			for (const [random, want] of [[0, least], [1, most]]) {
				const env = new Env().start();
				env.Math.random = () => random;
				env.socket.open();
				env.socket.drop(code);
				equal([env.wait, env.status.why], [want, why], `wait and why after ${code}`);
			}
		}
	},

	"a handshake times out after 10 s"() {
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

	"status reports an action that may be lost with the connection"() {
		const state = { type: "state", value: -1 };
		const [limited, undecided] = ["rate_limited", "store_undecided"].map((code) => ({ type: "error", code }));
		for (const [act, answers, want] of [[false, [], false], [true, [], true], [true, [state], false],
			[true, [{ type: "users", count: 2 }], true], [true, [limited], false], [true, [undecided], true],
			[true, [undecided, state], false], [true, [undecided, limited], false]]) {
			const env = new Env().start();
			env.socket.open();
			if (act) env.client.send("minus");
			for (const m of answers) env.socket.receive(m);
			env.socket.drop();
			equal(env.status.unanswered, want, `unanswered with action ${act}, answers ${JSON.stringify(answers)}`);
			env.tick(env.wait);
			env.socket.open();
			equal([env.status.unanswered, env.socket.sent], [false, []], "unanswered and sent on the next connection");
		}
	},

	"no tries while offline, one try when online again"() {
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

	"a server on this machine needs no network"() {
		for (const [url, state] of [["ws://localhost:8080/", "connecting"], ["wss://a.localhost/", "connecting"],
			["wss://127.0.0.1:8443/", "connecting"], ["wss://[::1]:8443/", "connecting"],
			["wss://localhost.example/", "offline"], ["wss://127.example/", "offline"]]) {
			const env = new Env();
			env.navigator.onLine = false;
			env.start(url);
			equal(env.status.state, state, `state for ${url}`);
		}
	},

	"a page that becomes visible tries at once, unless a close code decided the wait"() {
		for (const [code, state] of [[1006, "connecting"], [1012, "connecting"], [1013, "waiting"], [1008, "waiting"]]) {
			const env = new Env().start();
			env.socket.open();
			env.socket.drop(code);
			env.show("hidden");
			equal(env.status.state, "waiting", `state while hidden, after ${code}`);
			env.show("visible");
			equal(env.status.state, state, `state when visible, after ${code}`);
			env.show("visible");
			equal(env.sockets.length, state === "waiting" ? 1 : 2, "sockets"); // one try at a time
		}
	},

	"retry connects at once, and only once"() {
		const env = new Env().start();
		env.socket.drop(1013);
		env.client.retry();
		env.client.retry();
		equal([env.status.state, env.sockets.length], ["connecting", 2], "state, sockets");
	},

	"a page that is hidden for 5 minutes stops trying"() {
		const env = new Env().start();
		env.show("hidden");
		for (let i = 0; env.status.state !== "hidden" && i < 1000; i++) {
			if (env.status.state === "connecting") env.socket.drop();
			env.tick(1_000);
		}
		const tries = env.sockets.length;
		equal(env.clock >= 301_000 && env.clock < 331_000, true, `stops in time, at ${env.clock}`);
		env.tick(86_400_000);
		equal(env.sockets.length, tries, "sockets after a day");
		env.show("visible");
		equal([env.status.state, env.sockets.length], ["connecting", tries + 1], "state and sockets when visible");
	},

	"a hidden page keeps its connection"() {
		const env = new Env().start();
		env.socket.open();
		env.show("hidden");
		env.tick(86_400_000);
		equal([env.status.state, env.asked.length], ["open", 0], "state, fetches");
	},

	async "a server that answers /state but refuses the WebSocket is busy"() {
		const env = new Env().start();
		env.answer = { value: 1, users: 1 };
		env.socket.drop();
		equal([env.status.why, env.wait], ["unreachable", 500], "why and wait at first"); // the server may have just started
		await env.pass(500);
		env.socket.drop();
		equal([env.status.why, env.wait], ["busy", 60_000], "why and wait after a second refusal");
		env.answer = undefined;
		await env.pass(0);
		env.client.retry();
		env.socket.drop();
		await env.pass(0);
		equal([env.status.why, env.wait], ["unreachable", 2_000], "why and wait when the server is gone");
		equal(env.asked[0], ["https://counter.example/state", "same-origin"], "first fetch");
	},

	async "an idle connection is checked, and stays if no message was missed"() {
		const env = new Env().start();
		env.answer = { value: 7, users: 2 };
		env.socket.open();
		env.socket.receive({ type: "users", count: 2 });
		env.socket.receive({ type: "state", value: 7 });
		await env.pass(239_999);
		equal(env.asked.length, 0, "fetches before four minutes");
		for (let i = 1; i <= 3; i++) {
			await env.pass(i === 1 ? 1 : 240_000);
			equal([env.asked.length, env.status.state], [i, "open"], "fetches, state");
		}
		env.Math.random = () => 0;
		env.socket.receive({ type: "users", count: 2 });
		await env.pass(119_999);
		equal(env.asked.length, 3, "fetches within two minutes");
		await env.pass(1);
		equal(env.asked.length, 4, "fetches after two minutes");
	},

	async "a connection that missed a message is lost"() {
		for (const [answer, saved] of [[{ value: 8, users: 2 }], [{ value: 7, users: 1 }], [undefined], [undefined, true]]) {
			const env = new Env().start();
			env.answer = answer;
			env.socket.open();
			env.socket.receive({ type: "users", count: 2 });
			env.socket.receive({ type: "state", value: 7 });
			await env.pass(240_000);
			await env.pass(4_999);
			equal(env.status.state, "open", "state within the grace");
			if (saved) env.socket.receive({ type: "state", value: 8 });
			await env.pass(1);
			equal([env.status.state, env.status.why], saved ? ["open", undefined] : ["waiting", "silent"],
				`state and why with ${JSON.stringify(answer)}, saved ${saved}`);
		}
	},

	async "a connection that never received the value is lost"() {
		const env = new Env().start();
		env.answer = { value: 0, users: 1 };
		env.socket.open();
		await env.pass(240_000);
		await env.pass(5_000);
		equal(env.status.why, "silent", "why");
	},

	async "a check ends when a message, an action or a close comes before its answer"() {
		for (const event of ["message", "action", "loss"]) {
			const env = new Env().start();
			env.socket.open();
			env.socket.receive({ type: "state", value: 7 });
			env.tick(240_000); // the check has fetched /state, and has no answer yet
			if (event === "message") env.socket.receive({ type: "state", value: 8 });
			if (event === "action") env.client.send("plus");
			if (event === "loss") env.socket.drop(1012);
			await env.pass(1_999);
			equal(env.status.state, event === "loss" ? "waiting" : "open", `state after ${event}`);
			equal(env.timers.size, 1, `timers after ${event}`);
			await env.pass(8_001);
			equal(env.status.why, { action: "silent", loss: "restarting" }[event], `why after ${event}`);
		}
	},

	async "a page that becomes visible checks at once"() {
		const env = new Env().start();
		env.socket.open();
		env.show("hidden");
		await env.pass(3_600_000);
		env.show("visible");
		equal(env.asked.length, 1, "fetches");
		await env.pass(5_000);
		await env.pass(5_000);
		equal(env.status.why, "silent", "why");
	},

	async "on another origin any answer is enough, because it cannot be read"() {
		const env = new Env();
		env.location.origin = "https://elsewhere.example";
		env.start("wss://counter.example:8443/any");
		env.answer = { value: 9, users: 9 };
		env.socket.open();
		env.socket.receive({ type: "state", value: 7 });
		await env.pass(240_000);
		await env.pass(5_000);
		equal([env.asked, env.status.state], [[["https://counter.example:8443/state", "no-cors"]], "open"], "fetches, state");
	},

	"close is final"() {
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
		await test();
	} catch (err) {
		failures.push(`${name}: ${err.stack}`);
	}
}
document.body.textContent = failures.length ? failures.join("\n") : `${Object.keys(tests).length} passed`;
