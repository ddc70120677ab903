// The page: what client.js reports becomes text, clicks and keys become actions.

import { connect } from "./client.js";

const [value, announcer, users, message, plus, minus, status, sentence, countdown, retry] =
  ["value", "announcer", "users", "message", "plus", "minus", "status", "sentence", "countdown", "retry"]
    .map((id) => document.getElementById(id));

const sentences = {
  unreachable: "The server cannot be reached.",
  lost: "The connection was lost.",
  silent: "The server does not answer.",
  restarting: "The server is restarting.",
  busy: "The server is full.",
  refused: "The server ended the connection.",
};

const refusal = "Not connected. That did not count.";

const messageTime = 5_000;

// The least time between two values for a screen reader: about what speaking a number takes.
const announceEvery = 2_000;

let current = { state: "connecting" }; // the last status
let counting; // updates the countdown
let clearing; // removes the message
let announcing; // the next announcement

function showValue(v) {
  value.textContent = v;
  value.classList.remove("stale", "unknown");
  // A custom property set from a script is not an inline style to CSP. From 1 to 999 the size stays.
  value.style.setProperty("--chars", Math.max(3, value.textContent.length));
  announcing ??= setTimeout(() => {
    announcing = undefined;
    announcer.textContent = value.textContent;
  }, announceEvery);
}

function showMessage(text) {
  message.textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => { message.textContent = ""; }, messageTime);
}

function showStatus(s) {
  current = s;
  const open = s.state === "open";
  status.dataset.state = s.state;
  sentence.textContent = open ? "Connected"
    : s.state === "offline" ? "This device is offline."
    : sentences[s.why] ?? "Connecting…";
  showCountdown();
  clearInterval(counting);
  if (s.state === "waiting") counting = setInterval(showCountdown, 250);

  for (const button of [plus, minus]) {
    button.setAttribute("aria-disabled", !open);
    if (open) button.classList.remove("refused");
  }
  if (open) {
    if (message.textContent === refusal) message.textContent = ""; // true no more
  } else {
    value.classList.add("stale");
    users.textContent = ""; // not known any more
  }

  if (s.unanswered) showMessage("The last click may not have counted.");

  const waits = s.state === "waiting" || s.state === "offline";
  if (!waits && document.activeElement === retry) plus.focus(); // a hidden button would lose the focus
  retry.hidden = !waits;
}

function showCountdown() {
  let text = "";
  switch (current.state) {
    case "connecting":
      if (current.why) text = "Trying again now…";
      break;
    case "waiting": {
      const seconds = Math.ceil((current.nextTry - performance.now()) / 1000);
      text = seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now…";
      break;
    }
    case "offline":
      text = "Trying again as soon as it is online.";
  }
  if (countdown.textContent !== text) countdown.textContent = text;
}

const client = connect(`${location.protocol === "http:" ? "ws:" : "wss:"}//${location.host}/`, {
  state: showValue,
  users: (count) => { users.textContent = `${count} ${count === 1 ? "person" : "people"} here`; },
  error: (e) => showMessage(e.message ?? e.code ?? "The server refused that."),
  status: showStatus,
});

// aria-disabled and not disabled: a disabled button drops clicks, and this one has to say that it did.
function act(button, action) {
  if (client.send(action)) return;
  showMessage(refusal);
  button.classList.remove("refused");
  void button.offsetWidth; // makes the animation start again
  button.classList.add("refused");
  setTimeout(() => button.classList.remove("refused"), 600);
}

plus.addEventListener("click", () => act(plus, "plus"));
minus.addEventListener("click", () => act(minus, "minus"));
retry.addEventListener("click", () => client.retry());

// "=" is the plus key without shift on many keyboards.
const keys = { "+": plus, "=": plus, ArrowUp: plus, "-": minus, "−": minus, ArrowDown: minus };

document.addEventListener("keydown", (event) => {
  // Ctrl + and Cmd - are the browser's zoom. A key that is held down is one action, as a button is.
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const button = keys[event.key];
  if (!button) return;
  // Where the page is larger than the screen, arrows scroll it unless a button of ours has the focus.
  if (event.key.startsWith("Arrow")) {
    const scrolls = document.documentElement.scrollHeight > innerHeight;
    if (scrolls && ![plus, minus].includes(document.activeElement)) return;
    event.preventDefault();
  }
  button.click();
});
