// A live plot of received values: one column a second, the newest on the right.

const columns = 300;
const leastSpan = 5; // from bottom to top, so that one step looks small

// plot draws into the three paths of svg: area, line, and the dot at its end. It returns set(value);
// set(undefined) ends the line. It calls onRange(low, high) after each drawing.
export function plot(svg, onRange) {
	const [area, line, dot] = svg.children;
	const second = () => Math.floor(Date.now() / 1000);
	let seconds = []; // [low, high, last] of each, or undefined
	let newest = second();
	let value, frame;

	function advance() {
		const missing = Math.min(second() - newest, columns);
		newest = second();
		for (let i = 0; i < missing; i++) seconds.push(value === undefined ? undefined : [value, value, value]);
		if (missing) seconds = seconds.slice(-columns);
		frame ??= requestAnimationFrame(draw); // a hidden page draws nothing
	}

	function draw() {
		frame = undefined;
		const known = seconds.filter(Boolean);
		if (!known.length) return;
		const low = Math.min(...known.map((s) => s[0]));
		const high = Math.max(...known.map((s) => s[1]));
		const y = (v) => (50 - 90 * (v - (low + high) / 2) / Math.max(high - low, leastSpan)).toFixed(1);
		let areas = "", lines = "", x = columns - seconds.length;
		seconds.forEach((s, i) => {
			x++;
			if (!s) return;
			const [bottom, top, last] = s.map(y);
			const step = (top === bottom ? "" : `V${top}V${bottom}`) + `V${last}H${x}`;
			const begins = !seconds[i - 1], ends = !seconds[i + 1];
			lines += (begins ? `M${x - 1} ${last}` : "") + step;
			areas += (begins ? `M${x - 1} 100` : "") + step + (ends ? "V100Z" : "");
		});
		area.setAttribute("d", areas);
		line.setAttribute("d", lines);
		dot.setAttribute("d", value === undefined ? "" : `M${columns} ${y(value)}h0`);
		onRange(low, high);
	}

	setInterval(advance, 1000);

	return function set(v) {
		advance();
		value = v;
		if (v === undefined) return;
		const [low, high] = seconds.pop() ?? [v, v];
		seconds.push([Math.min(low, v), Math.max(high, v), v]);
	};
}
