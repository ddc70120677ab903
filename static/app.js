// The page: shows what client.js reports, and sends clicks as actions.

import { connect } from "./client.js";
import { format, plot } from "./plot.js";
import { changes } from "./changes.js";

const { value, others, announcer, minute, caption, users, message, buttons, plus, minus, status, live, sentence, countdown, retry,
	share, invite, qr, address, copied, send, close, ...rest } =
	Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));

const lights = { connecting: "Connecting…", open: "Live", waiting: "Not live", offline: "Offline", hidden: "Paused" };

const sentences = {
	offline: "This device is offline.",
	unreachable: "The server cannot be reached.",
	lost: "The connection was lost.",
	silent: "The server does not answer.",
	restarting: "The server is restarting.",
	refused: "The server ended the connection.",
	limited: "Too many visitors from your network.",
	full: "The server is full.",
	blocked: "A proxy on the way blocks WebSockets.",
};

const still = matchMedia("(prefers-reduced-motion: reduce)");
const title = document.title;
const path = location.pathname.match(/c\/[^/]+$/)?.[0]; // of a counter with a name

let current; // the newest status
let last, shown; // values
let arrived; // a value, since the last frame
let bump; // the animation of the value
let people, counted; // the newest number of people, and the one that is shown
let remembers; // the plot has no gap
let own; // the timer of a click that has no answer yet
let lasting; // the message stays until an answer comes
let frame, late; // the next showNews: a frame, or a timer on a hidden page
let counting, clearing, announcing; // timers

const history = plot(rest.plot, rest.scale, () => !still.matches, (low, high) => {
	setText(caption, `Last 5 minutes: ${format(low)}${low === high ? "" : ` to ${format(high)}`}`);
	showMinute();
});

const moved = changes({
	others: (n) => floating(others, n),
	own: (n) => floating(n > 0 ? plus : minus, n),
});

function setText(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

// The page shows news at most once a frame, however many messages arrive.
function news() {
	if (frame || late) return;
	if (document.hidden) late = setTimeout(showNews, 250); // it has no frames, and its title should be right
	else frame = requestAnimationFrame(showNews);
}

document.addEventListener("visibilitychange", () => {
	if (frame) showNews();
});

function showNews() {
	cancelAnimationFrame(frame);
	clearTimeout(late);
	frame = late = undefined;
	if (arrived) showValue();
	showPeople();
	moved.show();
}

function newValue(v) {
	if (value.classList.contains("stale")) moved.begin(v);
	else moved.to(v);
	history.set(v);
	last = v;
	arrived = true;
	news();
}

function showValue() {
	arrived = false;
	// Announce the visitor's own actions soon, those of others rarely.
	const soon = own || value.classList.contains("stale");
	if (soon) announcing = clearTimeout(announcing);
	announcing ??= setTimeout(() => {
		announcing = undefined;
		setText(announcer, value.textContent);
	}, soon ? 700 : 10_000);
	answered();
	const text = format(last);
	setText(value, text);
	document.title = `${text} · ${title}`;
	value.classList.remove("stale");
	// CSP allows a style that a script sets. 1 to 3 digits have one size.
	value.style.setProperty("--chars", Math.max(3, text.length));
	bump?.cancel();
	if (!still.matches && shown !== undefined && last !== shown) bump = value.animate({ translate: [`0 ${last < shown ? -0.05 : 0.05}em`, "0"] }, 160);
	shown = last;
}

function showPeople() {
	if (people === counted) return;
	setText(users, people === undefined ? "" : ` · ${format(people)} ${people === 1 ? "person" : "people"} here`);
	if (!still.matches && counted !== undefined && people !== undefined && !users.getAnimations().length) users.animate({ opacity: [0.3, 1] }, 600);
	counted = people;
}

function showMinute() {
	const n = history.lastMinute();
	setText(minute, n === undefined ? "" : n === 0 ? "No change in the last minute" : `${signed(n)} in the last minute`);
}

const signed = (n) => (n > 0 ? "+" : "") + format(n);

// floating shows a change for a moment: it rises, or falls if n is negative.
function floating(host, n) {
	if (still.matches || document.hidden) return;
	const e = host.appendChild(document.createElement("i"));
	e.ariaHidden = true;
	e.className = n > 0 ? "up" : "down";
	e.textContent = signed(n);
	const way = n > 0 ? ["0 0", "0 -2.4em"] : ["0 -2.4em", "0 0"];
	e.animate({ translate: way, opacity: [0, 1, 1, 0] }, 1_000).onfinish = () => e.remove();
}

// The page begins with what happened before it, and fills what it has missed. Without an answer the plot begins now.
async function remember() {
	if (remembers) return;
	remembers = true; // also while it asks
	const answer = await fetch(new URL(`${path ? path + "/" : ""}history`, import.meta.url)).catch(() => {});
	const past = answer?.ok && await answer.json().catch(() => {});
	if (past?.points) history.fill(past);
	else remembers = false;
}

function show(text, lasts = false) {
	setText(message, text);
	lasting = lasts;
	clearTimeout(clearing);
	if (!lasts) clearing = setTimeout(setText, 5_000, message, "");
}

function answered() {
	own = clearTimeout(own);
	if (lasting) show("");
}

function showError(e) {
	answered();
	if (e.code !== "store_undecided") moved.refused();
	show(e.message ?? e.code, e.code === "store_undecided");
}

function showStatus(s) {
	const open = s.state === "open";
	if (open) remember();
	else if (current?.state === "open") remembers = false;
	current = s;
	status.dataset.state = s.state;
	setText(live, lights[s.state]);
	setText(sentence, sentences[s.why ?? s.state] ?? "");
	clearInterval(counting);
	if (s.nextTry) counting = setInterval(showCountdown, 250);
	showCountdown();

	for (const button of [plus, minus]) button.setAttribute("aria-disabled", !open);
	if (!open) {
		people = undefined; // unknown now
		showNews();
		answered();
		value.classList.add("stale");
		history.set(undefined);
		showMinute();
	}
	if (s.unanswered) show("The last click got no answer: it may have counted or not.");
	const waits = s.state === "waiting" || s.state === "offline";
	if (!waits && document.activeElement === retry) plus.focus(); // hiding retry would lose the focus
	retry.hidden = !waits;
}

function showCountdown() {
	const seconds = Math.ceil((current.nextTry - performance.now()) / 1000);
	setText(countdown, current.state === "offline" ? "Trying again when it is online."
		: seconds > 0 ? `Trying again in ${seconds} s.`
		: current.why ? "Trying again now…" : "");
}

remember();
const client = connect(path ?? "./", {
	state: newValue,
	users: (n) => {
		people = n;
		news();
	},
	error: showError,
	status: showStatus,
});

// The buttons are aria-disabled, not disabled: a click must still show that it did not count.
function act(button) {
	button.focus(); // Safari does not, and the keys need the focus
	if (client.send(button.id)) {
		moved.sent(button === plus ? 1 : -1);
		own ??= setTimeout(show, 1_000, "Waiting for the server's answer…", true);
		return;
	}
	show("Not connected: that did not count.");
	if (!still.matches) button.animate({ translate: ["0", "-.35rem", ".35rem", "0"] }, 250);
}

for (const button of [plus, minus]) button.onclick = () => act(button);
retry.onclick = client.retry;

// "=" is the plus key without shift on many keyboards.
const keys = { "+": plus, "=": plus, ArrowUp: plus, "-": minus, ArrowDown: minus };

// Single keys work only while a button has the focus: dictated words must not count.
// https://www.w3.org/TR/WCAG22/#character-key-shortcuts
buttons.onkeydown = (event) => {
	if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's zoom
	const button = keys[event.key];
	if (!button && !(event.key === "Enter" && event.repeat)) return;
	event.preventDefault(); // arrows scroll
	if (!event.repeat) act(button); // a key that is held down is one action
};
// The keys work at once, unless the page in whose frame this is has the focus.
if (matchMedia("(hover: hover)").matches && window === top) plus.focus();

const here = location.origin + location.pathname;
address.href = address.textContent = here;
if (navigator.share) send.textContent = "Send link";

share.onclick = () => {
	qr.src ||= new URL(`qr.svg?url=${encodeURIComponent(here)}`, import.meta.url);
	copied.textContent = "";
	invite.showModal();
};
close.onclick = () => invite.close();

send.onclick = async () => {
	try {
		if (navigator.share) return await navigator.share({ title, url: here });
		await navigator.clipboard.writeText(here); // undefined over http
		copied.textContent = "The link is copied.";
	} catch (e) {
		if (e.name === "AbortError") return; // the visitor has changed their mind
		getSelection().selectAllChildren(address);
		copied.textContent = "Copy the selected link.";
	}
};
