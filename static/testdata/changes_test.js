// Tests of changes.js on a fake clock. TestClient runs them in Chromium and reads the results from the page.

import { changes } from "/changes.js";

const failures = [];
let current;

// run makes changes tell its log on a fake clock. tick lets time pass.
function run() {
	const log = [];
	let clock = 1000, timers = [];
	const env = {
		performance: { now: () => clock },
		setTimeout: (f, ms) => timers.push([clock + ms, f]),
	};
	const it = changes({ own: (n) => log.push(`own ${n}`), others: (n) => log.push(`others ${n}`) }, env);
	const tick = (ms) => {
		clock += ms;
		const due = timers.filter(([at]) => at <= clock);
		timers = timers.filter(([at]) => at > clock);
		for (const [, f] of due) f();
	};
	it.begin(10);
	return { it, log, tick };
}

function equal(got, want) {
	if (String(got) !== String(want)) failures.push(`${current}: ${got}, want ${want}`);
}

// after returns what is shown for the actions of the visitor, then a value.
function after(steps, value) {
	const { it, log } = run();
	for (const step of steps) it.sent(step);
	it.to(value);
	it.show();
	return log.join(", ");
}

const tests = {
	"own steps explain a change, the rest is of others"() {
		equal(after([], 11), "others 1");
		equal(after([], 7), "others -3");
		equal(after([1], 11), "own 1");
		equal(after([-1], 9), "own -1");
		equal(after([1, 1], 12), "own 2");
		equal(after([1], 48), "own 1, others 37");
		equal(after([-1], 5), "own -1, others -4");
		equal(after([1, 1, 1], 12), "own 2");
		equal(after([1], 8), "others -2");
		equal(after([1, -1], 13), "own 1, others 2");
	},

	"an answer without a change means that others moved it back"() {
		equal(after([1], 10), "own 1, others -1");
		equal(after([1, -1], 10), "");
		equal(after([], 10), "");
	},

	"a step is used once, refused ones and old ones explain nothing"() {
		let { it, log } = run();
		it.sent(1);
		it.to(11);
		it.show();
		it.to(12);
		it.show();
		equal(log, "own 1,others 1");

		({ it, log } = run());
		it.sent(1);
		it.refused();
		it.to(11);
		it.show();
		equal(log, "others 1");

		let tick;
		({ it, log, tick } = run());
		it.sent(1);
		it.to(7); // others took away more
		tick(2_000);
		it.to(8);
		it.show();
		equal(log, "others -2");
	},

	"a crowd is added up"() {
		const { it, log, tick } = run();
		for (let v = 11; v <= 48; v++) it.to(v);
		it.show();
		for (let v = 49; v <= 148; v++) {
			it.to(v);
			it.show();
		}
		equal(log, "others 38");
		tick(499);
		equal(log, "others 38");
		tick(1);
		equal(log, "others 38,others 100");
		tick(500);
		it.to(147);
		it.show();
		equal(log, "others 38,others 100,others -1");
	},

	"what goes up and down again in a pause is not shown"() {
		const { it, log, tick } = run();
		it.to(11);
		it.show();
		it.to(12);
		it.show();
		it.to(11);
		it.show();
		tick(500);
		equal(log, "others 1");
	},

	"after a gap the value begins anew"() {
		const { it, log } = run();
		it.sent(1);
		it.begin(50);
		it.to(51);
		it.show();
		equal(log, "others 1");
	},
};

let passed = 0;
for (const [name, test] of Object.entries(tests)) {
	current = name;
	const before = failures.length;
	try {
		test();
	} catch (e) {
		failures.push(`${name}: ${e.stack}`);
	}
	if (failures.length === before) passed++;
}
document.body.textContent = failures.length ? failures.join("\n") : `${passed} passed`;
