// The live view of the engine: /metrics once a second, drawn as a minute of history.

import { ApiError, call } from "./api.js";
import { byId } from "./dom.js";
import { parse, rates, readEngine } from "./metrics.js";

const INTERVAL_MS = 1000;
const NUM_POINTS = 60;
const WIDTH = 120;
const HEIGHT = 28;
const SVG = "http://www.w3.org/2000/svg";

/** A figure with its history, inside the element whose id it has. */
class Figure {
  constructor(id) {
    this.history = [];
    this.value = byId(id).querySelector("dd");
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true");
    this.area = document.createElementNS(SVG, "path");
    this.line = document.createElementNS(SVG, "path");
    this.area.classList.add("area");
    this.line.classList.add("line");
    this.svg.append(this.area, this.line);
    byId(id).append(this.svg);
  }

  /** Show a text, and draw a number after those before it; ceiling: what fills the height. */
  show(text, number, ceiling = 0) {
    this.value.textContent = text;
    this.history.push(number ?? 0);
    if (this.history.length > NUM_POINTS) this.history.shift();
    const top = Math.max(ceiling, ...this.history) || 1;
    const step = WIDTH / (NUM_POINTS - 1);
    const start = WIDTH - (this.history.length - 1) * step;
    const points = this.history.map(
      (each, index) =>
        `${(start + index * step).toFixed(1)} ${(HEIGHT - 1 - (each / top) * (HEIGHT - 3)).toFixed(1)}`,
    );
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${start.toFixed(1)} ${HEIGHT}L${points.join("L")}L${WIDTH} ${HEIGHT}Z`);
  }
}

/** Watches the engine while the page is seen. */
export class EngineView {
  constructor() {
    this.figures = Object.fromEntries(
      ["generated", "prompt", "step", "pages", "running", "waiting"].map((name) => [
        name,
        new Figure(`engine-${name}`),
      ]),
    );
    this.before = null;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.#schedule(0));
  }

  /** Begin to watch, or look at once. */
  start() {
    this.#schedule(0);
  }

  #schedule(delay) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.#look(), delay);
  }

  async #look() {
    try {
      const response = await call("metrics", { signal: AbortSignal.timeout(5 * INTERVAL_MS) });
      const now = { at: performance.now(), ...readEngine(parse(await response.text())) };
      this.#show(now);
      this.before = now;
      setState("live", "live");
    } catch (error) {
      this.before = null;
      // Whoever asks for a key starts this again; a server that is gone may come back.
      if (error instanceof ApiError && error.status === 401) return setState("locked", "locked");
      setState("gone", "no answer");
    }
    this.#schedule(INTERVAL_MS);
  }

  #show(now) {
    const { figures } = this;
    figures.running.show(String(now.running), now.running);
    figures.waiting.show(String(now.waiting), now.waiting);
    const share = `${(100 * now.usage).toFixed(now.usage < 0.1 ? 1 : 0)} %`;
    const pages = now.numPages ? `${now.pages} / ${now.numPages}` : share;
    figures.pages.show(pages, now.usage, 1);
    let speed = "idle";
    if (this.before) {
      const rate = rates(this.before, now, (now.at - this.before.at) / 1000);
      figures.generated.show(short(rate.generated), rate.generated);
      figures.prompt.show(short(rate.prompt), rate.prompt);
      figures.step.show(rate.stepMs === null ? "–" : `${short(rate.stepMs)} ms`, rate.stepMs);
      if (rate.generated || now.running) speed = `${short(rate.generated)} tok/s`;
    }
    byId("glance").textContent = now.waiting ? `${speed} · ${now.waiting} waiting` : speed;
  }
}

function setState(state, text) {
  byId("engine-state").dataset.state = state;
  byId("engine-state").textContent = text;
}

/** A number in at most four characters or so. */
export function short(number) {
  if (number >= 100_000) return `${Math.round(number / 1000)}k`;
  if (number >= 10_000) return `${(number / 1000).toFixed(1)}k`;
  return number >= 100 ? String(Math.round(number)) : number.toFixed(1);
}
