// The connection to a plusminus server, without a page: import { connect } from "./client.js".
// Times are in milliseconds.

// Full jitter: a wait is anywhere between 0 and a limit that doubles, so that not all come back at once.
const minDelay = 500;
const maxDelay = 30_000;

// A connection that lasted this long was a success: the limit starts again from minDelay.
const calm = 10_000;

// For the opening handshake, and for any message after an action.
const patience = 10_000;

// Scripts see no pings: a connection on which nobody acts looks the same dead or alive. After quiet to
// twice quiet, GET /state tells whether we have missed a message, which then has grace to arrive.
const quiet = 120_000;
const grace = 5_000;

// A page that nobody looked at for so long makes no more tries until somebody does.
const forgotten = 300_000;

// Why a connection ended, by close code, and the least and the most to wait where that tells.
const reasons = { 1001: "restarting", 1008: "refused", 1012: "restarting", 1013: "busy" };
const waits = { restarting: [0, 2_000], refused: [30_000, 60_000], busy: [30_000, 60_000] };

/**
 * connect keeps a connection to url ("wss://host/") until close(). on holds callbacks:
 *   state(value), users(count), error({code, message})   the server's messages
 *   status({state, why, nextTry, unanswered})   of the connection. state is connecting, open, offline (no
 *     network), hidden (nobody looks), closed, or waiting: until nextTry, on the performance.now() clock.
 *     why is unreachable, lost, silent (no answer came), restarting, busy (there, without room) or refused.
 *     unanswered: it ended after an action and before the answer, so whether that counted is unknown.
 *
 * send(action) reports whether it was handed to an open connection. If not, it never will be: nothing
 * is kept, and nothing sent twice. retry() tries now. env is the window, or a stand-in for tests.
 */
export function connect(url, on = {}, env = globalThis) {
	let socket; // the one that we believe in, or undefined
	let state, why, nextTry, hiddenAt;
	let openedAt; // undefined unless the current socket has been open
	let failures = 0;
	let there = false; // the server answered /state after the last handshake failed
	let timer; // the next try, the end of our patience, or the next check: one at a time
	let acted = false; // an action has no answer yet
	let heard = {}; // the last value and count, in a new object after each event
	const ended = new AbortController();
	const now = () => env.performance.now();
	const hidden = () => env.document?.visibilityState === "hidden";

	// The server on one's own machine can be reached without any network.
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

	// stop lets go of the socket at once: the closing handshake of a dead one takes minutes, and what it
	// still brings is no news.
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
		// Scripts do not see a handshake's status, such as 503. But a server that answers /state between
		// two that fail is there, and has no room.
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

	// ask returns what GET /state says, {} if we may not read it, and undefined without an answer.
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
		switch (m.type) { // an unknown type is from a newer server, and not for us
			case "state":
				acted = false;
				on.state?.(heard.value = m.value);
				break;
			case "users":
				on.users?.(heard.users = m.count);
				break;
			case "error":
				acted &&= m.code === "store_undecided"; // which is not the last word
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

	// Without a network the socket may look open for minutes and swallow what is sent.
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
