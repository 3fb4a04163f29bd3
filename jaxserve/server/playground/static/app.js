// The page: a conversation, its settings, and the engine beside it.

import { Answer } from "./answer.js";
import { ApiError, call, useKey } from "./api.js";
import { CheckedField, reveal } from "./checked.js";
import { byId } from "./dom.js";
import { EngineView, short } from "./engine.js";
import { chatBody, readSchema, readTools } from "./request.js";
import { events } from "./sse.js";
import { AnswerView, errorTurn, toolTurn, userTurn } from "./turns.js";

const RETRY_MS = 1000;
const MIN_SECONDS = 0.1;
const EXAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the weather of a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];
const EXAMPLE_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, country: { type: "string" } },
  required: ["city", "country"],
  additionalProperties: false,
};

// What was said: {message, element}; the message of an answer is made of it when it is sent.
let turns = [];
let controller = null;
const engine = new EngineView();
const tools = new CheckedField("tools", readTools);
const schema = new CheckedField("schema", readSchema);
// By the field of a request that they become.
const checked = { response_format: schema, tools, tool_choice: tools };
const log = byId("log");
const prompt = byId("prompt");

// Talking

function say(message, element) {
  byId("welcome").hidden = true;
  const entry = { message, element };
  turns.push(entry);
  log.append(element);
  scrollToEnd();
  return entry;
}

/** Forget a turn and all after it. */
function cutAt(entry) {
  controller?.abort();
  const index = turns.indexOf(entry);
  if (index < 0) return;
  for (const { element } of turns.splice(index)) element.remove();
  byId("welcome").hidden = turns.length > 0;
}

function ask(text) {
  const entry = say(
    { role: "user", content: text },
    userTurn(text, {
      edit: () => {
        cutAt(entry);
        prompt.value = text;
        fitPrompt();
        prompt.focus();
      },
    }),
  );
  void reply();
}

async function reply() {
  controller?.abort();
  const mine = (controller = new AbortController());
  const messages = turns.filter((turn) => turn.message).map((turn) => turn.message);
  const answer = new Answer();
  const view = new AnswerView(answer);
  const beganAt = performance.now();
  let firstAt = null;
  let entry = null;
  let frame = 0;
  const draw = () => {
    frame = 0;
    const follows = isAtEnd();
    view.update();
    if (follows) scrollToEnd();
  };
  setBusy(true);
  try {
    const body = chatBody(messages, readSettings());
    entry = say(null, view.element);
    const response = await call("v1/chat/completions", { body, signal: mine.signal });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      answer.add(JSON.parse(data));
      if (firstAt === null && !answer.isEmpty) firstAt = performance.now();
      frame ||= requestAnimationFrame(draw);
    }
    if (answer.finishReason === null) throw new Error("the stream ended before the answer did");
  } catch (error) {
    if (mine.signal.aborted) answer.finishReason = "abort";
    else fail(error, entry, answer);
  }
  cancelAnimationFrame(frame);
  if (controller === mine) {
    controller = null;
    setBusy(false);
  }
  if (!turns.includes(entry)) return;
  if (answer.isEmpty && answer.finishReason === "abort") return cutAt(entry);
  entry.message = answer.message;
  const follows = isAtEnd();
  view.finish(facts(answer, { beganAt, firstAt }), {
    copy: () => copy(answer.content),
    retry: () => {
      cutAt(entry);
      void reply();
    },
    onResults: (results) => {
      for (const [index, content] of results.entries()) {
        const { id, name } = answer.toolCalls[index];
        say({ role: "tool", tool_call_id: id, content }, toolTurn(name, content));
      }
      void reply();
    },
  });
  if (follows) scrollToEnd();
  announce(answer.content || "The answer has ended.");
}

/** Show what went wrong after what was said, or in its place if that is nothing. */
function fail(error, entry, answer) {
  if (entry && answer.isEmpty) cutAt(entry);
  if (error instanceof ApiError && error.status === 401) askForKey(error.message);
  checked[error.param?.split(/[.[]/)[0]]?.complain(error.message);
  const isNamed = !error.param || error.message.startsWith(error.param);
  const failure = say(
    null,
    errorTurn(isNamed ? error.message : `${error.param}: ${error.message}`, {
      retry: () => {
        cutAt(turns.includes(entry) ? entry : failure);
        void reply();
      },
    }),
  );
}

function facts(answer, { beganAt, firstAt }) {
  const found = [];
  const count = answer.usage?.completion_tokens;
  const cached = answer.usage?.prompt_tokens_details?.cached_tokens;
  if (count) found.push(`${count} tokens`);
  if (count && firstAt !== null) {
    const seconds = (performance.now() - firstAt) / 1000;
    // Over less, it would be the time of the network's packets rather than of tokens.
    if (seconds >= MIN_SECONDS) found.push(`${short((count - 1) / seconds)} tok/s`);
    found.push(`first after ${short(firstAt - beganAt)} ms`);
  }
  if (cached) found.push(`${cached} of ${answer.usage.prompt_tokens} prompt tokens cached`);
  return found;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied.");
  } catch {
    announce("This browser does not let the page copy.");
  }
}

// The form

function readSettings() {
  const settings = Object.fromEntries(new FormData(byId("settings")));
  return { ...settings, model: byId("model").value };
}

function setBusy(isBusy) {
  log.setAttribute("aria-busy", String(isBusy));
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("stop").hidden = !isBusy;
  byId("send").hidden = isBusy;
  if (hadFocus) byId(isBusy ? "stop" : "send").focus();
  if (isBusy) announce("The model answers.");
}

function announce(text) {
  byId("status").textContent = text;
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 48;

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || controller) return;
  const wrong = [...byId("settings").elements].find((field) => !field.checkValidity());
  if (wrong) {
    showSide(true);
    reveal(wrong);
    wrong.reportValidity();
    return;
  }
  prompt.value = "";
  fitPrompt();
  ask(text);
});
prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  // A key that ends the composition of a character is not meant for us.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (controller) controller.abort();
  else showSide(false);
});
byId("stop").addEventListener("click", () => controller?.abort());
byId("new").addEventListener("click", () => {
  if (turns.length) cutAt(turns[0]);
  prompt.focus();
});
byId("settings").addEventListener("submit", (event) => event.preventDefault());
byId("example-tools").addEventListener("click", () => {
  tools.fill(JSON.stringify(EXAMPLE_TOOLS, null, 2));
});
byId("example-schema").addEventListener("click", () => {
  schema.fill(JSON.stringify(EXAMPLE_SCHEMA, null, 2));
});
for (const button of document.querySelectorAll("#welcome button")) {
  button.addEventListener("click", () => {
    if (!controller) ask(button.textContent);
  });
}

// On narrow screens settings and engine lie under a button, and over the conversation.

const narrow = matchMedia("(width < 60rem)");

function showSide(isShown) {
  const lies = isShown && narrow.matches;
  const hadFocus = byId("side").contains(document.activeElement);
  byId("side").classList.toggle("shown", lies);
  byId("side-toggle").setAttribute("aria-expanded", String(lies));
  document.querySelector("main").inert = lies;
  if (hadFocus && !lies && narrow.matches) byId("side-toggle").focus();
}
byId("side-toggle").addEventListener("click", () => {
  showSide(!byId("side").classList.contains("shown"));
});
narrow.addEventListener("change", () => showSide(false));

// The key, and the models behind it

function askForKey(message) {
  byId("key-reason").textContent = message;
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  prompt.focus();
  void begin();
});

async function begin() {
  try {
    const { data } = await (await call("v1/models")).json();
    byId("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
    byId("model-note").textContent = data[0]
      ? `context of ${data[0].max_model_len.toLocaleString("en")} tokens`
      : "";
    engine.start();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return askForKey(error.message);
    byId("model-note").textContent = error.message;
    setTimeout(() => void begin(), RETRY_MS);
  }
}

void begin();
prompt.focus();
