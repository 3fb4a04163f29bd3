// How the turns of a conversation look.

import { h, showMarkdown } from "./dom.js";
import { parse } from "./markdown.js";
import { TokenView } from "./tokens.js";

const ENDS = {
  length: "cut at the limit of tokens",
  tool_calls: "waits for its tools",
  abort: "stopped",
  error: "failed",
  repetition: "stuck in a repetition",
};

function turn(kind, label, ...children) {
  return h(
    "article",
    { class: `turn ${kind}` },
    h("h3", { class: "who" }, label),
    h("div", { class: "said" }, ...children),
  );
}

function action(label, onclick) {
  return h("button", { type: "button", class: "quiet", onclick }, label);
}

/** What the user said; `edit` takes it back into the composer. */
export function userTurn(text, { edit }) {
  return turn(
    "user",
    "you",
    h("div", { class: "plain" }, text),
    h("div", { class: "actions" }, action("edit", edit)),
  );
}

/** The result of a tool, as it was given. */
export function toolTurn(name, text) {
  return turn("tool", "tool", h("div", { class: "plain" }, h("code", {}, name), ` → ${text}`));
}

/** What went wrong, in the server's words; `retry` asks again. */
export function errorTurn(message, { retry }) {
  const element = turn("error", "error", h("div", { class: "plain" }, message));
  element.setAttribute("role", "alert");
  element.lastChild.append(h("div", { class: "actions" }, action("try again", retry)));
  return element;
}

/** The assistant's turn: grows while its answer does. */
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.text = h("div", { class: "text" });
    this.reasoning = h("div", { class: "plain" });
    this.thinking = h(
      "details",
      { class: "reasoning", open: true, hidden: true },
      h("summary", {}, "reasoning"),
      this.reasoning,
    );
    this.calls = h("div", { class: "calls" });
    this.tokens = new TokenView();
    this.tokens.element.hidden = true;
    this.footer = h("div", { class: "actions" });
    this.element = turn(
      "assistant",
      "model",
      this.thinking,
      this.text,
      this.tokens.element,
      this.calls,
      this.footer,
    );
    this.element.classList.add("growing");
  }

  /** Show what the answer holds by now. */
  update() {
    const { answer } = this;
    this.thinking.hidden = !answer.reasoning;
    this.reasoning.textContent = answer.reasoning;
    showMarkdown(this.text, parse(answer.content));
    this.calls.replaceChildren(...answer.toolCalls.filter(Boolean).map(callElement));
    this.tokens.update(answer.tokens);
  }

  /**
   * Show the end. facts: short texts, how fast it was and the like. onResults: called with what
   * the tools returned, in the order of the calls.
   */
  finish(facts, { copy, retry, onResults }) {
    this.update();
    this.element.classList.remove("growing");
    if (this.answer.content) this.thinking.open = false;
    const end = ENDS[this.answer.finishReason];
    this.footer.replaceChildren(
      h("span", { class: "facts" }, [...facts, ...(end ? [end] : [])].join(" · ")),
      action("copy", copy),
      action("try again", retry),
    );
    if (this.answer.tokens.length) this.footer.append(this.#toggle());
    if (this.answer.finishReason === "tool_calls") this.calls.append(this.#results(onResults));
  }

  #toggle() {
    const button = action("tokens", () => {
      const isShown = this.tokens.element.hidden;
      this.tokens.element.hidden = !isShown;
      this.text.hidden = isShown;
      button.setAttribute("aria-pressed", String(isShown));
    });
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  #results(onResults) {
    const fields = this.answer.toolCalls.map(({ name }) =>
      h("textarea", { rows: "2", "aria-label": `Result of ${name}`, placeholder: `result of ${name}` }),
    );
    return h(
      "form",
      {
        class: "results",
        onsubmit: (event) => {
          event.preventDefault();
          event.target.remove();
          onResults(fields.map((field) => field.value));
        },
      },
      ...fields,
      h("button", { type: "submit" }, "send results"),
    );
  }
}

function callElement({ name, arguments: text }) {
  return h(
    "div",
    { class: "call" },
    h("span", { class: "call-name" }, name),
    h("code", {}, pretty(text)),
  );
}

/** JSON with room to read; as it is while it is not whole. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1).replaceAll(/\n */g, " ");
  } catch {
    return text;
  }
}
