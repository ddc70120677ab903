// The page: what client.js reports becomes text and plot, clicks become actions.

import { connect } from "./client.js";
import { plot } from "./plot.js";

const { value, announcer, caption, users, message, buttons, plus, minus, status, live, sentence, countdown, retry, ...rest } =
	Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));

const lights = { connecting: "Connecting…", open: "Live", waiting: "Not live", offline: "Offline", hidden: "Paused" };

const sentences = {
	unreachable: "The server cannot be reached.",
	lost: "The connection was lost.",
	silent: "The server does not answer.",
	restarting: "The server is restarting.",
	busy: "The server is there, but lets nobody in.",
	refused: "The server ended the connection.",
};

const still = matchMedia("(prefers-reduced-motion: reduce)");
const format = (v) => v.toLocaleString("en").replace("-", "−");

let current; // the last status
let last, shown; // values
let own; // a click has no answer yet: the timer that will say so
let lasting; // the message stays until there is an answer
let showing, counting, clearing, announcing; // timers

const draw = plot(rest.plot, (low, high) => setText(caption,
	`Last 5 minutes: ${format(low)}${low === high ? "" : ` to ${format(high)}`}`));

function setText(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

// However many values come, the page shows one a frame.
function newValue(v) {
	draw(v);
	last = v;
	showing ??= setTimeout(showValue, 16);
}

function showValue() {
	showing = clearTimeout(showing);
	// A screen reader hears one's own doing soon, and that of others seldom.
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
	// What a script sets is no inline style to CSP. From 1 to 999 the size stays.
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
	setText(sentence, s.state === "offline" ? "This device is offline." : sentences[s.why] ?? "");
	clearInterval(counting);
	if (s.nextTry) counting = setInterval(showCountdown, 250);
	showCountdown();

	for (const button of [plus, minus]) button.setAttribute("aria-disabled", !open);
	if (!open) {
		if (showing) showValue();
		answered();
		value.classList.add("stale");
		setText(users, ""); // not known any more
		draw(undefined);
	}
	if (s.unanswered) show("The last click got no answer: it may have counted or not.");
	const waits = s.state === "waiting" || s.state === "offline";
	if (!waits && document.activeElement === retry) plus.focus(); // a hidden button would lose the focus
	retry.hidden = !waits;
}

function showCountdown() {
	const seconds = Math.ceil((current.nextTry - performance.now()) / 1000);
	setText(countdown, current.state === "offline" ? "Trying again when it is online."
		: seconds > 0 ? `Trying again in ${seconds} s.`
		: current.why ? "Trying again now…" : "");
}

const client = connect(location.origin.replace("http", "ws") + "/", {
	state: newValue,
	users: (n) => setText(users, ` · ${format(n)} ${n === 1 ? "person" : "people"} here`),
	error: showError,
	status: showStatus,
});

// The buttons are aria-disabled, not disabled: they have to say that a click did not count.
function act(button) {
	button.focus(); // Safari does not, and the keys work where the focus is
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

// Single keys work while one of the two has the focus, so that nobody who dictates counts by accident.
// https://www.w3.org/TR/WCAG22/#character-key-shortcuts
buttons.onkeydown = (event) => {
	if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's zoom
	const button = keys[event.key];
	if (!button && !(event.key === "Enter" && event.repeat)) return;
	event.preventDefault(); // arrows scroll
	if (!event.repeat) act(button); // a key that is held down is one action
};
if (matchMedia("(hover: hover)").matches) plus.focus(); // where there is a keyboard, it works at once
