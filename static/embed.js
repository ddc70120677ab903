// Defines <plus-minus>, a counter of this file's server on a page of another site. docs/embed.md describes it.

const most = 32; // names on one connection
const pause = 250; // ms in which further tags come and go before the connections change

const messages = {
	foreign: "The server does not allow this page.",
	bad_name: "That is no name of a counter.",
	no_counter: "The server has no such counter.",
	not_connected: "Not connected: that did not count.",
	unanswered: "The last click may have counted or not.",
	limited: "Too many visitors from your network.",
	full: "The server is full.",
	blocked: "A proxy on the way blocks WebSockets.",
};

const sheet = new CSSStyleSheet(); // a page's policy may forbid <style>
sheet.replaceSync(`
:host { display: inline-block; position: relative; vertical-align: middle; line-height: 1.25; font-variant-numeric: tabular-nums }
:host([readonly]) { vertical-align: baseline }
:host([hidden]), [hidden] { display: none !important }
#all { display: inline-flex; align-items: baseline; gap: .6em }
[part=box] { display: inline-flex; align-items: stretch; border: 1px solid var(--plus-minus-border, color-mix(in srgb, currentColor 62%, transparent)); border-radius: var(--plus-minus-radius, 999px); background: var(--plus-minus-background, none) }
[part=value] { display: grid; place-items: center; min-width: 2ch; font-weight: 600 }
button { display: flex; align-items: center; justify-content: center; gap: .5em; min-width: var(--plus-minus-size, 44px); min-height: var(--plus-minus-size, 44px); margin: 0; padding: 0; border: 0; border-radius: inherit; background: none; color: inherit; font: inherit; cursor: pointer; touch-action: manipulation; user-select: none; -webkit-user-select: none }
.one button { padding: 0 1.1em }
slot[name] { color: var(--plus-minus-color, inherit); font-size: 1.2em; line-height: 1 }
@media (hover: hover) { button:hover { background: color-mix(in srgb, currentColor 10%, transparent) } }
button:focus-visible { outline: 3px solid var(--plus-minus-focus, currentColor); outline-offset: 2px }
button:active { transform: scale(.95) }
.none [part=box] { border: 0 }
.none [part=value], .one [part=value] { min-width: 1ch }
.off [part=box] { border-style: dashed }
.off [part=value] { font-style: italic }
.off [part=value], .off slot[name] { color: color-mix(in srgb, currentColor 75%, transparent) }
.off.none [part=value] { text-decoration: underline dashed 1px; text-underline-offset: .2em }
.off button { cursor: not-allowed }
[part=note]:not(:empty) { position: absolute; z-index: 1; inset: calc(100% + 6px) auto auto 0; width: max-content; max-width: min(20em, 80vw); padding: .4em .7em; border: 1px solid; border-radius: .5em; background: Canvas; color: CanvasText; font-size: .875em; text-align: start }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
@media (prefers-reduced-motion: reduce) { button:active { transform: none } }
@media (forced-colors: active) { [part=box] { border-color: ButtonBorder } button:focus-visible { outline-color: Highlight } .off [part=value], .off slot[name] { color: GrayText } }
`);

const still = matchMedia("(prefers-reduced-motion: reduce)");
const tags = new Map(); // by counter, "" for the default one: a Set of its tags
const values = new Map(); // by counter
const lines = []; // the connections: names, the present link, and the next one until it is open
const wrong = new Map(); // by counter that the server does not have: the code
let planned; // timer

// This file may be imported by any page, client.js only by those of allowed origins.
let loading;
const load = () => loading ??= import("./client.js").then((client) => client.connect, async () => {
	const there = await fetch(new URL("client.js", import.meta.url), { mode: "no-cors" }).catch(() => {});
	for (const name of tags.keys()) tell(name, "fail", there ? "foreign" : "unreachable");
});

const tell = (name, method, ...args) => tags.get(name)?.forEach((tag) => tag[method](...args));

// Tags that come together share a connection, so this waits for all of them.
const plan = () => planned ??= setTimeout(settle, lines.length ? pause : 0);

async function settle() {
	const connect = await load();
	planned = undefined;
	if (!connect) return;
	for (const line of lines) {
		for (const name of line.names) {
			if (!tags.has(name)) line.changed = line.names.delete(name);
		}
	}
	for (const name of tags.keys()) {
		if (wrong.has(name)) tell(name, "fail", wrong.get(name));
		else if (!lines.some((line) => line.names.has(name))) {
			let line = name && lines.find((line) => line.named && line.names.size < most);
			if (!line) lines.push(line = { named: name !== "", names: new Set() });
			line.names.add(name);
			line.changed = true;
		}
	}
	for (const line of [...lines]) if (line.changed) dial(line, connect);
}

// The names of a connection are fixed. So dial makes another one, and closes the present one when that is open.
function dial(line, connect) {
	line.changed = false;
	line.next?.client.close();
	line.next = undefined;
	if (!line.open || !line.names.size) {
		line.link?.client.close();
		line.link = undefined;
	}
	if (!line.names.size) return lines.splice(lines.indexOf(line), 1);
	const link = {};
	line[line.link ? "next" : "link"] = link;
	const each = (...args) => line.names.forEach((name) => tell(name, ...args));
	link.client = connect(line.named ? "c?" + [...line.names].map((name) => "name=" + name).join("&") : "./", {
		state(value, name = "") {
			if (line.named && !name) { // the server runs without -counters
				for (const name of line.names) wrong.set(name, "no_counter");
				each("fail", "no_counter");
				return link.client.close();
			}
			values.set(name, value);
			if (link === line.link) tell(name, "take", value);
		},
		error({ code, message, counter }) {
			if (link !== line.link) return;
			if (counter !== undefined || !line.named) tell(counter ?? "", "refused", code, message);
			else each("refused", code, message);
		},
		status({ state, why, unanswered }) {
			if (link === line.next && state === "open") {
				const last = line.link;
				line.link = link;
				line.next = undefined;
				last.client.close();
			}
			if (state === "waiting" && line.named && !link.checked) check(line, link);
			if (link !== line.link) return;
			line.open = state === "open";
			each("live", line.open);
			if (unanswered) each("refused", "unanswered");
			if (why && why !== line.why) each("fail", why);
			line.why = why;
		},
	});
}

// One name that the server does not have keeps the whole connection from being made. check finds it.
async function check(line, link) {
	link.checked = true;
	await Promise.all([...line.names].map(async (name) => {
		if (values.has(name)) return;
		const answer = await fetch(new URL(`c/${name}/state`, import.meta.url)).catch(() => {});
		const code = { 400: "bad_name", 404: "no_counter" }[answer?.status];
		if (code) wrong.set(name, code);
		if (code && line.names.delete(name)) line.changed = true;
	}));
	if (line.changed) plan();
	for (const name of wrong.keys()) tell(name, "fail", wrong.get(name));
}

function make(name, attributes, ...children) {
	const element = document.createElement(name);
	for (const key in attributes) element.setAttribute(key, attributes[key]);
	element.append(...children);
	return element;
}

class PlusMinus extends HTMLElement {
	static observedAttributes = ["counter", "button", "readonly", "label", "lang", "plus-label", "minus-label"];
	#name; // while it is on a page
	#shown; #value; #failed;
	#clicked = -1e9; // when, by performance.now()
	#own; // the next value may be due to a click
	#showing; #clearing; #announcing; // timers
	#content = make("slot");
	#label = make("span", { part: "label" });
	#number = make("span", { part: "value" }, "–");
	#plus = make("button", { part: "button plus", type: "button" });
	#minus = make("button", { part: "button minus", type: "button" });
	#icons = [make("slot", { name: "plus", "aria-hidden": "true" }, "+"), make("slot", { name: "minus", "aria-hidden": "true" }, "−")];
	#box = make("span", { part: "box" });
	#all = make("span", { id: "all", class: "off" });
	#note = make("span", { part: "note", role: "status" });
	#spoken = make("span", { class: "unseen", role: "status" });

	constructor() {
		super();
		const root = this.attachShadow({ mode: "open" });
		root.adoptedStyleSheets = [sheet];
		root.append(this.#all, this.#note, this.#spoken, this.#content);
		this.#plus.onclick = () => this.#act("plus", this.#plus);
		this.#minus.onclick = () => this.#act("minus", this.#minus);
	}

	/** The value, or undefined as long as it is not known. */
	get value() { return this.#shown; }

	connectedCallback() {
		this.#name = this.getAttribute("counter") ?? "";
		this.#layout();
		if (this.#name && !/^(?!\.+$)[\w.-]{1,64}$/.test(this.#name)) return setTimeout(() => this.fail("bad_name")); // when the page may listen
		if (!tags.has(this.#name)) tags.set(this.#name, new Set());
		tags.get(this.#name).add(this);
		const line = lines.find((line) => line.names.has(this.#name));
		if (line?.open && values.has(this.#name)) {
			this.take(values.get(this.#name));
			this.live(true);
		}
		plan();
	}

	disconnectedCallback() {
		const same = tags.get(this.#name);
		if (same?.delete(this) && !same.size) tags.delete(this.#name);
		this.#name = undefined;
		this.live(false);
		for (const timer of [this.#showing, this.#clearing, this.#announcing]) clearTimeout(timer);
		this.#showing = undefined;
		plan();
	}

	attributeChangedCallback(attribute) {
		if (this.#name === undefined) return;
		if (attribute !== "counter") return this.#layout();
		this.disconnectedCallback();
		this.#shown = this.#value = undefined;
		this.#number.textContent = "–";
		this.connectedCallback();
	}

	#layout() {
		const get = (name, otherwise) => this.getAttribute(name) ?? otherwise;
		const buttons = { plus: this.#plus, minus: this.#minus };
		const only = this.hasAttribute("readonly") ? [] : buttons[get("button")] ?? Object.values(buttons);
		const label = get("label", ""), names = [get("plus-label", "Plus one"), get("minus-label", "Minus one")];
		this.#label.textContent = label;
		this.#label.className = label ? "" : "unseen";
		this.#plus.replaceChildren(this.#icons[0]);
		this.#minus.replaceChildren(this.#icons[1]);
		this.#plus.ariaLabel = names[0];
		this.#minus.ariaLabel = names[1];
		this.#all.classList.toggle("one", !Array.isArray(only));
		this.#all.classList.toggle("none", only.length === 0);
		if (Array.isArray(only)) {
			if (only.length) this.#box.replaceChildren(this.#minus, this.#number, this.#plus);
			else this.#box.replaceChildren(this.#number);
			this.#all.role = "group";
			this.#all.ariaLabel = label || this.#name || "Counter";
			this.#all.replaceChildren(this.#label, this.#box);
		} else { // its name is its text: the label and the value
			if (!label) this.#label.textContent = names[only === this.#plus ? 0 : 1];
			only.ariaLabel = null;
			only.append(this.#label, this.#number);
			this.#box.replaceChildren(only);
			this.#all.role = this.#all.ariaLabel = null;
			this.#all.replaceChildren(this.#box);
		}
		this.#reveal();
		if (this.#shown !== undefined) this.#number.textContent = this.#format(this.#shown);
	}

	// The content of the tag is shown until there is a value.
	#reveal() {
		const content = [...this.childNodes].some((n) => n.nodeType === 1 ? !n.slot : n.nodeType === 3 && n.data.trim());
		this.#content.hidden = this.#shown !== undefined;
		this.#all.hidden = this.#shown === undefined && (content || this.#failed);
	}

	#format(value) {
		const lang = this.closest("[lang]")?.lang || document.documentElement.lang || undefined;
		let format = String;
		try {
			format = new Intl.NumberFormat(lang).format;
		} catch {} // no language
		return typeof value === "number" ? format(value).replace("-", "−") : JSON.stringify(value);
	}

	#act(action, button) {
		const line = lines.find((line) => line.names.has(this.#name));
		this.#clicked = performance.now();
		if (line?.link?.client.send(action, this.#name || undefined)) return this.#own = true;
		this.refused("not_connected");
		if (!still.matches) button.animate({ translate: ["0", "-.3em", ".3em", "0"] }, 200);
	}

	/** For the connection: a value. One a frame is shown. */
	take(value) {
		this.#value = value;
		this.#showing ??= setTimeout(() => {
			this.#showing = undefined;
			const last = this.#shown;
			this.#shown = this.#value;
			this.#failed = false;
			this.#number.textContent = this.#format(this.#shown);
			this.#reveal();
			if (this.#own) { // of others' actions a screen reader says nothing
				clearTimeout(this.#announcing);
				this.#announcing = setTimeout(() => { this.#spoken.textContent = this.#number.textContent; }, 700);
				this.#say("");
			}
			this.#own = false;
			if (last === this.#shown) return;
			if (last !== undefined && !still.matches) this.#number.animate({ translate: [`0 ${this.#shown < last ? "-.3em" : ".3em"}`, "0"] }, 150);
			this.dispatchEvent(new CustomEvent("change", { detail: { value: this.#shown } }));
		}, 16);
	}

	/** For the connection: whether it is open. */
	live(open) {
		this.#all.classList.toggle("off", !open);
		this.#box.title = open ? "" : "Not connected";
		for (const button of [this.#plus, this.#minus]) button.ariaDisabled = !open;
	}

	/** For the connection: an action did not count. Only the tag that was clicked says so. */
	refused(code, message) {
		if (performance.now() - this.#clicked > 20_000) return;
		this.#say(message ?? messages[code]);
		this.fail(code, message);
	}

	/** For the connection: there is no value, or an action did not count. */
	fail(code, message = messages[code] ?? "There is no connection to the server.") {
		this.#failed = true;
		this.#reveal();
		this.dispatchEvent(new CustomEvent("error", { detail: { code, message } }));
	}

	#say(text) {
		clearTimeout(this.#clearing);
		this.#note.textContent = text;
		this.#note.style.translate = "";
		const over = this.#note.getBoundingClientRect().right - document.documentElement.clientWidth;
		if (text && over > 0) this.#note.style.translate = -over - 4 + "px"; // a policy allows what a script sets
		if (text) this.#clearing = setTimeout(() => this.#say(""), 5_000);
	}
}

customElements.define("plus-minus", PlusMinus);
