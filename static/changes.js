// Splits the changes of a value into the visitor's own and those of others, and shows few of them.

// An action without an answer for this long explains no change any more.
const patience = 2_000;

// The page shows at most one change of each kind in this time. Others in this time are added up.
const pause = 500;

/**
 * changes follows a value. Values merge, so a change may be of many people. This rule decides: as many steps of a
 * change as the visitor's own unanswered actions explain are the visitor's, and the rest are those of others. A value
 * that answers and has not changed means that others moved it the other way. So own and others always add up to the change.
 *
 * on.own(n) and on.others(n) show a change of n, which is not 0.
 */
export function changes(on, env = globalThis) {
	let value;
	let unanswered = []; // [step, when] of the visitor's actions
	const kind = (tell) => ({ tell, sum: 0, timer: undefined });
	const plus = kind(on.own), minus = kind(on.own), others = kind(on.others);

	function tell(kind) {
		if (kind.timer || !kind.sum) return;
		kind.tell(kind.sum);
		kind.sum = 0;
		kind.timer = env.setTimeout(() => {
			kind.timer = undefined;
			tell(kind);
		}, pause);
	}

	return {
		// begin starts from a value without a change, at first and after a gap.
		begin(v) {
			value = v;
			unanswered = [];
		},

		// sent tells of an action of the visitor: step is 1 or -1.
		sent(step) {
			unanswered.push([step, env.performance.now()]);
		},

		// refused tells that the oldest unanswered action did not count.
		refused() {
			unanswered.shift();
		},

		// to tells the newest value.
		to(v) {
			const change = v - value;
			value = v;
			unanswered = unanswered.filter(([, when]) => env.performance.now() - when < patience);
			let own = 0;
			const all = unanswered.reduce((sum, [step]) => sum + step, 0);
			if (change === 0 || change === all) {
				own = all;
				unanswered = [];
			} else {
				unanswered = unanswered.filter(([step]) => {
					const explains = step * (change - own) > 0;
					if (explains) own += step;
					return !explains;
				});
			}
			(own > 0 ? plus : minus).sum += own;
			others.sum += change - own;
		},

		// show shows what has been added up, or lets it wait for the end of a pause.
		show() {
			[plus, minus, others].forEach(tell);
		},
	};
}
