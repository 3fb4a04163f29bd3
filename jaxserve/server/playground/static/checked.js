// Fields whose text must be more than text, with what is wrong with it beside them.

import { byId } from "./dom.js";

/** A field that `read` takes the text of, or throws; its form is invalid as long as it does. */
export class CheckedField {
  constructor(id, read) {
    this.input = byId(id);
    this.read = read;
    this.problem = byId(`${id}-problem`);
    // Not while it is being written: half a text is wrong without being a mistake.
    this.input.addEventListener("input", () => this.#settle(""));
    this.input.addEventListener("change", () => this.check());
  }

  /** Put a text into the field. */
  fill(text) {
    this.input.value = text;
    this.check();
  }

  /** See whether the text is right. */
  check() {
    try {
      this.read(this.input.value);
      this.#settle("");
    } catch (error) {
      this.#settle(error.message);
    }
  }

  /** Show what somebody else says is wrong, until the text changes. */
  complain(text) {
    this.problem.textContent = text;
    this.input.setAttribute("aria-invalid", String(text !== ""));
    if (text) reveal(this.input);
  }

  #settle(text) {
    this.input.setCustomValidity(text);
    this.complain(text);
  }
}

/** Unfold what hides an element. */
export function reveal(element) {
  const fold = element.closest("details");
  if (fold) fold.open = true;
}
