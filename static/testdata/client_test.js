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
	statuses = {}; // of GET /state and /events; without one the fetch fails
	body = { value: 7, users: 2 }; // of /state; undefined if it is not JSON
	readable = true; // CORS permits the page to read the answers
	streams = 0; // event streams that are open

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

	fetch = async (url, { mode = "cors" }) => {
		this.asked.push([String(url), mode]);
		const path = new URL(url).pathname.split("/").at(-1);
		const status = this.statuses[path];
		if (!status || mode === "cors" && !this.readable) throw new TypeError("no answer");
		if (mode === "no-cors") return { ok: false, status: 0 }; // opaque
		const streams = path === "events" && status === 200 ? 1 : 0;
		this.streams += streams;
		return {
			status,
			ok: status === 200,
			json: async () => this.body ?? JSON.parse("<html>"),
			body: { cancel: () => { this.streams -= streams; } },
		};
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

	// fail makes handshakes fail until the client knows why, at most three times. It returns why.
	async fail() {
		for (let i = 0; i < 3; i++) {
			if (this.status.state === "waiting") this.tick(this.wait);
			this.socket.drop();
			await this.pass(0);
		}
		return this.status.why;
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

// What the client sends to find out whether its connection lives, and the answer.
const probe = '{"action":"ping"}';
const refusal = { type: "error", code: "unknown_action", message: "The actions are plus and minus." };

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
		for (const [code, least, most, why] of [[1012, 0, 2_000, "restarting"], [1013, 30_000, 60_000, "full"],
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
		env.tick(49_999);
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

	"a hidden page keeps its connection, and sends nothing"() {
		const env = new Env().start();
		env.socket.open();
		env.show("hidden");
		env.tick(86_400_000);
		equal([env.status.state, env.socket.sent], ["open", []], "state, sent");
	},

	async "a second failed handshake tells why, as /state and /events do"() {
		for (const [state, events, why, asked] of [
			[undefined, undefined, "unreachable", ["state"]],
			[502, undefined, "unreachable", ["state"]],
			[429, undefined, "limited", ["state"]],
			[503, undefined, "unreachable", ["state"]], // from a proxy, or the store has not been reached
			[200, 429, "limited", ["state", "events"]],
			[200, 503, "full", ["state", "events"]],
			[200, 200, "blocked", ["state", "events"]],
			[200, undefined, "blocked", ["state", "events"]], // a proxy that holds back the stream
		]) {
			const what = `with /state ${state}, /events ${events}`;
			const env = new Env().start();
			env.statuses = { state, events };
			env.socket.drop();
			equal([env.status.why, env.wait], ["unreachable", 500], `why and wait at first ${what}`); // it may have just started
			await env.pass(0);
			equal(env.asked, asked.map((path) => ["https://counter.example/" + path, "cors"]), `fetches ${what}`);
			env.tick(500);
			env.socket.drop();
			equal([env.status.why, env.wait], [why, why === "unreachable" ? 1_000 : 60_000], `why and wait ${what}`);
			await env.pass(0);
			equal(env.streams, 0, `open streams ${what}`);

			env.statuses = {};
			env.client.retry();
			env.socket.drop();
			await env.pass(0);
			env.client.retry();
			env.socket.drop();
			equal(env.status.why, "unreachable", `why when the server is gone, ${what}`);
			await env.pass(0);
			env.client.retry();
			env.socket.open();
			env.socket.drop();
			equal(env.status.why, "lost", `why after a connection, ${what}`);
		}
	},

	async "an answer that is not JSON is not from plusminus"() {
		const env = new Env().start();
		env.statuses = { state: 200, events: 200 };
		env.body = undefined;
		equal([await env.fail(), env.asked.length], ["unreachable", 3], "why, fetches");
	},

	async "all URLs are in the folder of the server"() {
		const here = location.origin; // this test imports client.js from there
		for (const [url, socket, state] of [
			["wss://counter.example:8443/a/", "wss://counter.example:8443/a/", "https://counter.example:8443/a/state"],
			["https://counter.example/a/", "wss://counter.example/a/", "https://counter.example/a/state"],
			["ws://localhost/", "ws://localhost/", "http://localhost/state"],
			["./", here.replace("http", "ws") + "/", here + "/state"],
		]) {
			const env = new Env().start(url);
			equal(env.socket.url, socket, `socket of ${url}`);
			env.socket.drop();
			await env.pass(0);
			equal(env.asked[0], [state, "cors"], `first fetch for ${url}`);
		}
	},

	async "on another origin that does not allow the page, the client says so and asks no more"() {
		const env = new Env();
		env.location.origin = "https://elsewhere.example";
		env.start();
		env.statuses = { state: 200, events: 403 };
		env.readable = false;
		equal([await env.fail(), env.wait], ["foreign", 60_000], "why, wait");
		equal(env.asked, [["https://counter.example/state", "cors"], ["https://counter.example/state", "no-cors"]], "fetches");
		await env.pass(60_000);
		env.socket.open();
		env.readable = true;
		env.socket.drop();
		equal([await env.fail(), env.streams], ["blocked", 0], "why after a connection, open streams");
	},

	async "a server of another origin that gives no answer is unreachable"() {
		const env = new Env();
		env.location.origin = "https://elsewhere.example";
		env.start();
		equal([await env.fail(), env.asked.at(-1)], ["unreachable", ["https://counter.example/state", "no-cors"]], "why, last fetch");
	},

	"a dead connection is noticed within 55 s"() {
		for (const [random, quiet] of [[0, 25_000], [1, 50_000]]) {
			const env = new Env().start();
			env.Math.random = () => random;
			env.socket.open();
			env.tick(20_000);
			env.socket.receive({ type: "state", value: 7 });
			env.tick(quiet - 1);
			equal(env.socket.sent, [], `sent before ${quiet} ms`);
			env.tick(1);
			equal(env.socket.sent, [probe], `sent after ${quiet} ms`);
			env.Math.random = () => 1;
			env.tick(4_999);
			equal(env.status.state, "open", "state within the grace");
			env.tick(1);
			equal([env.status.state, env.status.why, env.status.unanswered], ["waiting", "silent", false], "state, why, unanswered");
			equal(env.asked, [], "fetches");
		}
	},

	"any message shows that the connection lives"() {
		for (const m of [{ type: "state", value: 8 }, { type: "users", count: 3 }, { type: "new" }, refusal]) {
			const env = new Env().start();
			env.socket.open();
			for (let i = 1; i <= 3; i++) {
				env.tick(50_000);
				equal(env.socket.sent.length, i, "probes");
				env.tick(4_999);
				env.socket.receive(m);
				equal(env.timers.size, 1, "timers");
			}
			env.tick(49_999);
			equal(env.status.state, "open", `state after ${JSON.stringify(m)}`);
		}
	},

	"each probe hides one error, and an error of the page's own action is reported"() {
		const env = new Env().start();
		env.socket.open();
		env.tick(50_000);
		env.client.send("jump"); // an unknown action
		env.socket.receive(refusal);
		equal(env.log, [], "calls after the answer to the probe");
		env.socket.receive(refusal);
		equal(env.log.length, 1, "calls after the answer to the action");
	},

	"a probe does not end the wait for an action's answer"() {
		const env = new Env().start();
		env.socket.open();
		env.tick(50_000);
		env.client.send("plus");
		env.socket.receive(refusal);
		env.socket.drop();
		equal([env.status.unanswered, env.log], [true, []], "unanswered, calls");
	},

	"online, visible and the back/forward cache check the connection at once"() {
		for (const [what, wake] of Object.entries({
			online: (env) => env.listeners.get("online")(),
			pageshow: (env) => env.listeners.get("pageshow")({ persisted: true }),
			visible: (env) => { env.show("hidden"); env.tick(env.status.state === "open" ? 3_600_000 : 0); env.show("visible"); },
		})) {
			const env = new Env().start();
			env.socket.open();
			env.tick(1_000);
			wake(env);
			equal(env.socket.sent, [probe], `sent after ${what}`);
			env.tick(4_999);
			equal(env.status.state, "open", `state after ${what}`);
			env.tick(1);
			equal([env.status.state, env.status.why], ["waiting", "silent"], `state and why after ${what}`);
			wake(env);
			equal([env.status.state, env.sockets.length], ["connecting", 2], `state and sockets after a second ${what}`);
			wake(env);
			equal(env.sockets.length, 2, `sockets after a third ${what}`);
		}
	},

	"the first pageshow of a page checks nothing"() {
		const env = new Env().start();
		env.socket.open();
		env.listeners.get("pageshow")({ persisted: false });
		equal(env.socket.sent, [], "sent");
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
