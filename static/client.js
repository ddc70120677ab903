// Connects any script to a plusminus server: import { connect } from "./client.js".
// Times are in milliseconds.

// Full jitter: a wait is random, from 0 to a limit that doubles, so that clients do not return all at once.
const minDelay = 500;
const maxDelay = 30_000;

// After a connection that lasted this long, the limit starts again from minDelay.
const calm = 10_000;

// Timeout of the opening handshake, and of the first message after an action.
const patience = 10_000;

// Scripts see no pings, so an idle connection may be dead. After quiet to twice quiet without a message,
// GET /state tells whether one was missed. If so, it has grace to arrive.
const quiet = 120_000;
const grace = 5_000;

// A page that was hidden for this long stops trying until it is visible.
const forgotten = 300_000;

// Why a connection ended, by close code, and the shortest and longest wait after some reasons.
const reasons = { 1001: "restarting", 1008: "refused", 1012: "restarting", 1013: "busy" };
const waits = { restarting: [0, 2_000], refused: [30_000, 60_000], busy: [30_000, 60_000] };

/**
 * connect keeps a connection to url ("wss://host/") until close(). on holds callbacks:
 *   state(value), users(count), error({code, message})   the server's messages
 *   status({state, why, nextTry, unanswered})   the connection. state is connecting, open, offline (no
 *     network), hidden (the page is), closed, or waiting (until nextTry, on the performance.now() clock).
 *     why is unreachable, lost, silent (no answer), restarting, busy (no room, or only /state answers)
 *     or refused. unanswered: it ended before an action's answer, so the action may have counted.
 *
 * send(action) reports whether it was handed to an open connection. It queues nothing and sends nothing
 * twice. retry() connects now. env is the window, or a fake one in tests.
 */
export function connect(url, on = {}, env = globalThis) {
	let socket; // the current one, or undefined
	let state, why, nextTry, hiddenAt;
	let openedAt; // of the current socket, or undefined
	let failures = 0;
	let there = false; // the server answered /state after the last handshake failed
	let timer; // the only one: for the next try, a timeout or the next check
	let acted = false; // an action has no answer yet
	let heard = {}; // the newest value and users; a new object after each event
	const ended = new AbortController();
	const now = () => env.performance.now();
	const hidden = () => env.document?.visibilityState === "hidden";

	// A server on this machine needs no network.
	const local = /^wss?:\/\/(localhost|[^/:]+\.localhost|127\.[\d.]+|\[::1\])(:|\/|$)/i.test(url);
	const offline = () => !local && env.navigator?.onLine === false;

	function enter(next) {
		state = next;
		const unanswered = acted && !socket;
		if (unanswered) acted = false;
		on.status?.({ state, why, nextTry, unanswered });
	}

	function setTimer(f, ms) {
		env.clearTimeout(timer);
		timer = f && env.setTimeout(f, ms);
	}

	function open() {
		openedAt = nextTry = undefined;
		socket = new env.WebSocket(url);
		setTimer(lose, patience);
		socket.onopen = () => {
			openedAt = now();
			why = undefined;
			listen();
			enter("open");
		};
		socket.onmessage = (event) => receive(event.data);
		socket.onclose = (event) => lose(reasons[event.code]);
		enter("connecting");
	}

	// stop drops the socket at once: the closing handshake of a dead one takes minutes, and its late
	// messages are stale.
	function stop(next) {
		setTimer();
		heard = {};
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
		// Scripts cannot see a handshake's status, such as 503. But a server that answers /state between
		// two failed handshakes runs, and refuses WebSockets.
		why = because ?? (opened ? "lost" : there ? "busy" : "unreachable");
		const [least, most] = waits[why] ?? [0, Math.min(maxDelay, minDelay * 2 ** failures)];
		failures++;
		const delay = least + env.Math.random() * (most - least);
		nextTry = now() + delay;
		setTimer(tryAgain, delay);
		enter("waiting");
		there = !opened && await ask() !== undefined;
	}

	function tryAgain() {
		if (hidden() && now() - hiddenAt >= forgotten) stop("hidden");
		else open();
	}

	const silent = () => lose("silent");
	const listen = () => setTimer(check, quiet * (1 + env.Math.random()));

	async function check() {
		if (hidden()) return listen();
		const before = heard;
		const answer = await ask();
		if (heard !== before) return;
		const { value, users } = { ...before, ...answer };
		if (answer && value === before.value && users === before.users) listen();
		else setTimer(silent, grace);
	}

	// ask returns the JSON of GET /state, {} if it cannot be read, or undefined without an answer.
	async function ask() {
		const origin = url.replace(/^ws(.*?\/\/[^/]*).*/i, "http$1");
		const mode = env.location?.origin === origin ? "same-origin" : "no-cors";
		try {
			const answer = await env.fetch(origin + "/state", { mode, signal: AbortSignal.timeout(patience) });
			return answer.ok ? await answer.json() : {};
		} catch {}
	}

	function receive(data) {
		let m = {};
		try {
			m = JSON.parse(data) ?? m;
		} catch {}
		heard = { ...heard };
		listen();
		switch (m.type) { // ignore unknown types, of newer servers
			case "state":
				acted = false;
				on.state?.(heard.value = m.value);
				break;
			case "users":
				on.users?.(heard.users = m.count);
				break;
			case "error":
				acted &&= m.code === "store_undecided"; // an answer follows
				on.error?.(m);
		}
	}

	function send(action) {
		if (state !== "open" || socket.readyState !== 1) return false;
		socket.send(JSON.stringify({ action }));
		if (!acted) {
			heard = { ...heard };
			setTimer(silent, patience);
		}
		return acted = true;
	}

	function retry() {
		if (state !== "closed" && !socket) open();
	}

	// Without a network the socket may look open for minutes and lose what is sent.
	function cutOff() {
		if (offline() && state !== "offline") stop("offline");
	}

	// Browsers slow down the timers of hidden pages, so a wait or a check may be overdue.
	function seen() {
		if (hidden()) hiddenAt = now();
		else if (state === "open" && !acted) check();
		else if (state === "hidden" || state === "waiting" && why !== "busy" && why !== "refused") open();
	}

	function close() {
		stop("closed");
		ended.abort();
	}

	const follow = (target, type, f) => target?.addEventListener?.(type, f, { signal: ended.signal });
	follow(env, "online", retry);
	follow(env, "offline", cutOff);
	follow(env.document, "visibilitychange", seen);
	if (hidden()) hiddenAt = now();
	if (offline()) enter("offline");
	else open();
	return { send, retry, close };
}
