// The page: shows what client.js reports, and sends clicks as actions.

import { connect } from "./client.js";
import { plot } from "./plot.js";

const { value, announcer, caption, users, message, buttons, plus, minus, status, live, sentence, countdown, retry, ...rest } =
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
const format = (v) => v.toLocaleString("en").replace("-", "−");

let current; // the newest status
let last, shown; // values
let own; // the timer of a click that has no answer yet
let lasting; // the message stays until an answer comes
let showing, counting, clearing, announcing; // timers

const draw = plot(rest.plot, (low, high) => setText(caption,
	`Last 5 minutes: ${format(low)}${low === high ? "" : ` to ${format(high)}`}`));

function setText(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

// The page shows at most one value a frame.
function newValue(v) {
	draw(v);
	last = v;
	showing ??= setTimeout(showValue, 16);
}

function showValue() {
	showing = clearTimeout(showing);
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
	document.title = `${text} · plusminus`;
	value.classList.remove("stale");
	// CSP allows a style that a script sets. 1 to 3 digits have one size.
	value.style.setProperty("--chars", Math.max(3, text.length));
	if (!still.matches) value.animate({ translate: [`0 ${last < shown ? -0.06 : 0.06}em`, "0"] }, 160);
	shown = last;
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
	show(e.message ?? e.code, e.code === "store_undecided");
}

function showStatus(s) {
	current = s;
	const open = s.state === "open";
	status.dataset.state = s.state;
	setText(live, lights[s.state]);
	setText(sentence, sentences[s.why ?? s.state] ?? "");
	clearInterval(counting);
	if (s.nextTry) counting = setInterval(showCountdown, 250);
	showCountdown();

	for (const button of [plus, minus]) button.setAttribute("aria-disabled", !open);
	if (!open) {
		if (showing) showValue();
		answered();
		value.classList.add("stale");
		setText(users, ""); // unknown now
		draw(undefined);
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

const client = connect(location.pathname.match(/c\/[^/]+$/)?.[0] ?? "./", {
	state: newValue,
	users: (n) => setText(users, ` · ${format(n)} ${n === 1 ? "person" : "people"} here`),
	error: showError,
	status: showStatus,
});

// The buttons are aria-disabled, not disabled: a click must still show that it did not count.
function act(button) {
	button.focus(); // Safari does not, and the keys need the focus
	if (client.send(button.id)) {
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
if (matchMedia("(hover: hover)").matches) plus.focus(); // the keys work at once
