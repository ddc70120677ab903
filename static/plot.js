// A live plot of the last five minutes: one column a second, the newest on the right.

const columns = 300;
const minute = 60;

// From bottom to top the plot shows at least this much, so that a few clicks are a hill and not a cliff.
const leastSpan = 32;

// A change is drawn as a slope over this many seconds, and ends where it happened.
const slope = 6;

// How far the scale goes in each frame to where it should be.
const haste = 0.2;

// plot draws into the paths of svg: grid, area, ranges, line, and the dot at its end. It writes the numbers at the grid
// into scale. It calls onDraw(low, high) after each drawing. eases() reports whether the scale may move. It draws at most once a frame.
export function plot(svg, scale, eases, onDraw) {
	const [grid, area, ranges, line, dot] = svg.children;
	const second = () => Math.floor(Date.now() / 1000);
	let seconds = Array(columns).fill(); // [low, high, last] of each, or undefined
	let newest = second(); // of the last column
	let value, frame;
	let bottom, top; // of the scale, as shown
	let parts = 5; // most lines of the grid
	new ResizeObserver(([{ contentRect }]) => {
		parts = Math.max(1, Math.min(5, Math.floor(contentRect.height / 30)));
	}).observe(svg);

	function advance() {
		const missing = Math.max(0, Math.min(second() - newest, columns));
		newest = second();
		for (let i = 0; i < missing; i++) seconds.push(value === undefined ? undefined : [value, value, value]);
		if (missing) seconds = seconds.slice(-columns);
		frame ??= requestAnimationFrame(draw); // a hidden page draws nothing
	}

	// rescale moves the scale towards one that shows low to high, and returns the distance between its lines: 1, 2 or
	// 5 times a power of ten.
	function rescale(low, high) {
		const span = Math.max(high - low, leastSpan) * 1.15;
		const power = 10 ** Math.floor(Math.log10(span / parts));
		const step = power * [1, 2, 5, 10].find((n) => n * power >= span / parts);
		const snap = step / 2;
		let b = Math.floor(((low + high - span) / 2) / snap) * snap;
		let t = Math.ceil(((low + high + span) / 2) / snap) * snap;
		if (low >= 0 && b < 0) [b, t] = [0, t - b]; // a count that was never below 0 stands on it
		if (bottom === undefined || !eases()) [bottom, top] = [b, t];
		bottom += haste * (b - bottom);
		top += haste * (t - top);
		if (Math.abs(b - bottom) + Math.abs(t - top) < span / 500) [bottom, top] = [b, t];
		else frame ??= requestAnimationFrame(draw);
		return step;
	}

	function draw() {
		frame = undefined;
		const known = seconds.filter(Boolean);
		if (!known.length) return;
		const low = Math.min(...known.map((s) => s[0]));
		const high = Math.max(...known.map((s) => s[1]));
		const step = rescale(low, high);
		const y = (v) => (100 - 100 * (v - bottom) / (top - bottom)).toFixed(2);
		drawGrid(step, y);

		let areas = "", lines = "", bands = "", run = "", pen;
		for (let x = 1; x <= columns; x++) {
			const s = seconds[x - 1], before = seconds[x - 2];
			if (!s) continue;
			const at = y(s[2]);
			if (!before) {
				run = `${x - 1} ${at}`;
				pen = x - 1;
			} else if (s[2] !== before[2]) {
				const start = Math.max(pen, x - slope), middle = (start + x) / 2;
				run += `H${start}C${middle} ${y(before[2])} ${middle} ${at} ${x} ${at}`;
				pen = x;
			}
			const [least, most] = [Math.min(s[2], before?.[2] ?? s[2]), Math.max(s[2], before?.[2] ?? s[2])];
			if (s[0] < least || s[1] > most) bands += `M${x} ${y(s[0])}V${y(s[1])}`;
			if (seconds[x]) continue;
			lines += `M${run}H${x}`;
			areas += `M${run.split(" ")[0]} 100L${run}H${x}V100Z`;
		}
		area.setAttribute("d", areas);
		ranges.setAttribute("d", bands);
		line.setAttribute("d", lines);
		dot.setAttribute("d", value === undefined ? "" : `M${columns} ${y(value)}h0`);
		onDraw(low, high);
	}

	function drawGrid(step, y) {
		let lines = "", n = 0, widest = 5; // a place for four digits, so that the first value moves nothing
		for (let m = 1; m < columns / minute; m++) lines += `M${m * minute} 0V100`;
		for (let v = Math.ceil(bottom / step) * step + 0; v <= top; v += step) { // + 0: not −0
			lines += `M0 ${y(v)}H${columns}`;
			const label = scale.children[n++] ?? scale.appendChild(document.createElement("span"));
			const text = format(v);
			if (label.textContent !== text) label.textContent = text;
			label.style.setProperty("--y", y(v));
			widest = Math.max(widest, text.length);
		}
		while (scale.children.length > n) scale.lastChild.remove();
		scale.hidden = widest > 11; // on a phone they would leave no place for the plot, and the caption has the numbers
		svg.parentElement.style.setProperty("--digits", scale.hidden ? 0 : widest);
		grid.setAttribute("d", lines);
	}

	setInterval(advance, 1000);

	return {
		// set tells a value that has just arrived; undefined ends the line.
		set(v) {
			advance();
			value = v;
			if (v === undefined) return;
			const [low, high] = seconds[columns - 1] ?? [v, v];
			seconds[columns - 1] = [Math.min(low, v), Math.max(high, v), v];
		},

		// fill takes an answer to GET /history for the seconds that the page has not seen itself.
		fill({ before, points }) {
			advance();
			let v = before, next = 0;
			seconds = seconds.map((seen, i) => {
				while (points[next]?.[0] <= i + 1 - columns) v = points[next++][1];
				return seen ?? [v, v, v];
			});
		},

		// lastMinute returns the change in the last minute, or undefined if it is not known.
		lastMinute() {
			const before = seconds[columns - 1 - minute];
			return before && value !== undefined ? value - before[2] : undefined;
		},
	};
}

// format writes a number as the page shows it.
export const format = (v) => v.toLocaleString("en").replace("-", "−");
