// The tokens of an answer, each tinted by how unlikely it was, with what else could have stood there.

import { h } from "./dom.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

/** Show white space and what is no text by itself. */
export function visible(token) {
  if (token === "") return "∅";
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
}

/** A list of tokens to walk through with the arrow keys, and the alternatives to the one chosen. */
export class TokenView {
  constructor() {
    this.tokens = [];
    this.current = 0;
    this.list = h("div", {
      class: "tokens",
      role: "group",
      "aria-label": "Tokens of the answer. Arrow keys move between them.",
      onkeydown: (event) => this.#move(event),
      onclick: (event) => this.#choose(event.target),
      onfocusin: (event) => this.#choose(event.target),
    });
    this.detail = h("div", { class: "alternatives", "aria-live": "polite" });
    this.element = h("div", { class: "token-view" }, this.list, this.detail);
  }

  /** Show the tokens that are new since the last call. */
  update(tokens) {
    const first = this.tokens.length;
    this.tokens = tokens.slice();
    const made = [];
    for (const [offset, token] of tokens.slice(first).entries()) {
      const index = first + offset;
      const button = h(
        "button",
        {
          type: "button",
          class: "token",
          tabindex: index === this.current ? "0" : "-1",
          "data-index": index,
          "aria-label": `${visible(token.token)}, ${percent(token.logprob)}`,
        },
        token.token.replaceAll("\n", "↵") || "∅",
      );
      // The style object is no inline style to the page's policy.
      button.style.setProperty("--p", Math.exp(token.logprob).toFixed(3));
      made.push(button);
      if (token.token.includes("\n")) made.push(h("br"));
    }
    this.list.append(...made);
  }

  #move(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const last = this.tokens.length - 1;
    let next;
    if (event.key in steps) next = this.current + steps[event.key];
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = last;
    else return;
    event.preventDefault();
    this.#button(Math.min(last, Math.max(0, next)))?.focus();
  }

  #button(index) {
    return this.list.querySelector(`[data-index="${index}"]`);
  }

  #choose(target) {
    if (target.dataset?.index === undefined) return;
    this.#button(this.current)?.setAttribute("tabindex", "-1");
    this.#button(this.current)?.removeAttribute("aria-current");
    this.current = Number(target.dataset.index);
    target.setAttribute("tabindex", "0");
    target.setAttribute("aria-current", "true");
    const token = this.tokens[this.current];
    const others = token.top_logprobs ?? [];
    const isAmong = others.some((other) => other.logprob === token.logprob && other.token === token.token);
    const rows = isAmong ? others : [token, ...others];
    this.detail.replaceChildren(...rows.map((row) => alternative(row, row.token === token.token)));
  }
}

function alternative({ token, logprob }, isChosen) {
  const bar = h("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--p", Math.exp(logprob).toFixed(3));
  return h(
    "div",
    { class: isChosen ? "alternative chosen" : "alternative" },
    h("code", {}, visible(token)),
    h("span", { class: "percent" }, percent(logprob)),
    bar,
  );
}
