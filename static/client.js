// Connects scripts to a plusminus server. Times are in milliseconds.

// Full jitter: a wait is random, from 0 to a limit that doubles, so that clients do not return all at once.
const minDelay = 500;
const maxDelay = 30_000;

// After a connection that lasted this long, the limit starts again from minDelay.
const calm = 10_000;

// Timeout of the opening handshake, and of the first message after an action.
const patience = 10_000;

// Scripts see no pings. After quiet to twice quiet without a message, the client sends one that the server
// refuses, and expects the refusal within grace. GET /state would cost the server 20 times as much.
const quiet = 25_000;
const grace = 5_000;

// A page that was hidden for this long stops trying until it is visible.
const forgotten = 300_000;

// Why a connection ended, by close code; why a handshake failed, by HTTP status; and the shortest and
// longest wait after some of these.
const reasons = { 1001: "restarting", 1008: "refused", 1012: "restarting", 1013: "full" };
const refusals = { 429: "limited", 503: "full" };
const long = [30_000, 60_000];
const waits = { restarting: [0, 2_000], refused: long, limited: long, full: long, blocked: long, foreign: long };

/**
 * connect keeps a connection to url until close(): "wss://host/folder/", or "./" for the server that this
 * module comes from. on holds callbacks:
 *   state(value, counter), users(count, counter), error({code, message, counter})   the server's
 *     messages; counter is undefined unless url is "c?name=a&name=b"
 *   status({state, why, nextTry, unanswered})   the connection. state is connecting, open, offline (no
 *     network), hidden (the page is), closed, or waiting (until nextTry, on the performance.now() clock).
 *     why is unreachable, lost, silent (no answer), restarting, refused (1008), limited (the address
 *     has its share), full, blocked (only HTTP passes), or foreign (the page's origin is not allowed).
 *     unanswered: it ended before an action's answer, so the action may have counted.
 *
 * send(action, counter) reports whether it was handed to an open connection. It queues nothing and sends nothing
 * twice. retry() connects now. env is the window, or a fake one in tests.
 */
export function connect(url, on = {}, env = globalThis) {
	const base = new URL(url, import.meta.url);
	base.protocol = base.protocol.replace("ws", "http");
	const folder = base.pathname.match(/\/c\/[^/]+$/) ? base.pathname + "/" : ""; // of one counter
	let socket; // the current one, or undefined
	let state, why, nextTry, hiddenAt;
	let openedAt; // of the current socket, or undefined
	let failures = 0;
	let found; // by ask
	let timer; // the only one: for the next try, a timeout or the next check
	let acted = false; // an action has no answer yet
	let probes = 0; // probes without an answer
	const ended = new AbortController();
	const now = () => env.performance.now();
	const hidden = () => env.document?.visibilityState === "hidden";

	// A server on this machine needs no network.
	const local = /^(.+\.)?localhost$|^127\.[\d.]+$|^\[::1]$/.test(base.hostname);
	const offline = () => !local && env.navigator?.onLine === false;

	function enter(next) {
		state = next;
		const unanswered = acted && !socket;
		acted &&= !unanswered;
		on.status?.({ state, why, nextTry, unanswered });
	}

	function setTimer(f, ms) {
		env.clearTimeout(timer);
		timer = f && env.setTimeout(f, ms);
	}

	function open() {
		openedAt = nextTry = undefined;
		socket = new env.WebSocket(base.href.replace("http", "ws"));
		setTimer(lose, patience);
		socket.onopen = () => {
			openedAt = now();
			why = undefined;
			listen();
			enter("open");
		};
		socket.onmessage = receive;
		socket.onclose = (event) => lose(reasons[event.code]);
		enter("connecting");
	}

	// stop drops the socket: a closing handshake may take minutes, and late messages are stale.
	function stop(next) {
		setTimer();
		probes = 0;
		if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
		socket?.close();
		socket = why = nextTry = undefined;
		if (next) enter(next);
	}

	async function lose(because) {
		stop();
		if (offline()) return enter("offline");
		const opened = openedAt !== undefined;
		if (opened && now() - openedAt >= calm) failures = 0;
		// found is of an earlier failure: after one, the server may just have started.
		why = because ?? (opened ? "lost" : found || "unreachable");
		const [least, most] = waits[why] ?? [0, Math.min(maxDelay, minDelay * 2 ** failures)];
		failures++;
		const delay = least + env.Math.random() * (most - least);
		nextTry = now() + delay;
		setTimer(tryAgain, delay);
		enter("waiting");
		if (opened) found = undefined;
		else if (found !== "foreign") found = await ask();
	}

	const tryAgain = () => hidden() && now() - hiddenAt >= forgotten ? stop("hidden") : open();
	const silent = () => lose("silent");
	const listen = () => setTimer(check, quiet * (1 + env.Math.random()));

	function check() {
		if (hidden()) return listen();
		probes++;
		socket.send('{"action":"ping"}');
		setTimer(silent, grace);
	}

	// ask returns why a handshake failed. Scripts see the status of /events, which has the same limits.
	// Fetch sends no credentials to another origin.
	async function ask() {
		const get = (path, mode) =>
			env.fetch(new URL(folder + path, base), { mode, signal: AbortSignal.timeout(patience) }).catch(() => {});
		let answer = await get("state");
		if (!answer) return env.location?.origin !== base.origin && await get("state", "no-cors") && "foreign";
		if (!answer.ok) return answer.status === 429 && "limited"; // 503 can be of a proxy
		if (!await answer.json().catch(() => {})) return; // not plusminus
		answer = await get("events");
		answer?.body?.cancel();
		return refusals[answer?.status] ?? "blocked";
	}

	function receive({ data }) {
		let m = {};
		try {
			m = JSON.parse(data) ?? m;
		} catch {}
		listen();
		if (probes && m.code === "unknown_action") return probes--;
		switch (m.type) { // ignore unknown types, of newer servers
			case "state":
				acted = false;
				on.state?.(m.value, m.counter);
				break;
			case "users":
				on.users?.(m.count, m.counter);
				break;
			case "error":
				acted &&= m.code === "store_undecided"; // an answer follows
				on.error?.(m);
		}
	}

	function send(action, counter) {
		if (socket?.readyState !== 1) return false;
		socket.send(JSON.stringify({ action, counter }));
		if (!acted) setTimer(silent, patience);
		return acted = true;
	}

	function retry() {
		if (state !== "closed" && !socket) open();
	}

	// Meanwhile the connection may have died, or a wait be overdue: timers of hidden pages are slow.
	function wake() {
		if (state === "open") check();
		else if (!waits[why]?.[0] && !offline()) retry();
	}

	function close() {
		stop("closed");
		ended.abort();
	}

	const follow = (target, type, f) => target?.addEventListener?.(type, f, { signal: ended.signal });
	follow(env, "online", wake);
	follow(env, "pageshow", (event) => event.persisted && wake()); // from the back/forward cache
	// Without a network the socket may look open for minutes and lose what is sent.
	follow(env, "offline", () => offline() && state !== "offline" && stop("offline"));
	follow(env.document, "visibilitychange", () => hidden() ? hiddenAt = now() : wake());
	if (hidden()) hiddenAt = now();
	if (offline()) enter("offline");
	else open();
	return { send, retry, close };
}
