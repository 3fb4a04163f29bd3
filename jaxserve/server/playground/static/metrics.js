// What /metrics says of the engine, and how fast it goes between two readings.

const SAMPLE = /^([\w:]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Read Prometheus' text format: the samples of each name, with their labels. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const [, name, written, value] = match;
    const labels = {};
    for (const [, label, said] of (written ?? "").matchAll(LABEL)) labels[label] = said;
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value: Number(value) });
  }
  return samples;
}

/** Return what the engine has and has done so far. */
export function readEngine(samples) {
  const sum = (name) =>
    (samples.get(name) ?? []).reduce((total, sample) => total + sample.value, 0);
  const cache = samples.get("vllm:cache_config_info")?.[0]?.labels ?? {};
  // Page 0 belongs to nobody: padding is written there.
  const numPages = Math.max(0, Number(cache.num_gpu_blocks ?? 0) - 1);
  const usage = sum("vllm:kv_cache_usage_perc");
  return {
    running: sum("vllm:num_requests_running"),
    waiting: sum("vllm:num_requests_waiting"),
    usage,
    numPages,
    pages: Math.round(usage * numPages),
    generated: sum("vllm:generation_tokens_total"),
    prompt: sum("vllm:prompt_tokens_total"),
    steps: sum("jaxserve:steps_total"),
    // The phases add up to all the time in which there was work.
    workSeconds: sum("jaxserve:step_phase_seconds_total"),
  };
}

/** Return tokens per second, and milliseconds per step or null without steps, between readings. */
export function rates(before, after, seconds) {
  // A counter that fell began anew.
  const grown = (name) => Math.max(0, after[name] - before[name]);
  const steps = grown("steps");
  return {
    generated: grown("generated") / seconds,
    prompt: grown("prompt") / seconds,
    stepMs: steps ? (1000 * grown("workSeconds")) / steps : null,
  };
}
