// The page's logic without a page. Run by test_playground.py, or `node --test` in this folder.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = "../../../jaxserve/server/playground/static";
const { Answer } = await import(`${page}/answer.js`);
const { parse: markdown, spans } = await import(`${page}/markdown.js`);
const { parse, rates, readEngine } = await import(`${page}/metrics.js`);
const { chatBody } = await import(`${page}/request.js`);
const { events } = await import(`${page}/sse.js`);

async function read(pieces) {
  const found = [];
  for await (const data of events(ReadableStream.from(pieces))) found.push(data);
  return found;
}

test("a stream gives the same events however it is cut", async () => {
  const bytes = new TextEncoder().encode(
    ': waiting\n\ndata: {"a": "é😀"}\r\n\r\ndata:two\ndata: lines\n\nevent: x\n\ndata: [DONE]\n\n',
  );
  const expected = ['{"a": "é😀"}', "two\nlines", "[DONE]"];
  assert.deepEqual(await read([bytes]), expected);
  for (let cut = 1; cut < bytes.length; cut++) {
    assert.deepEqual(await read([bytes.slice(0, cut), bytes.slice(cut)]), expected);
  }
});

test("an event that was not finished is none", async () => {
  assert.deepEqual(await read([new TextEncoder().encode("data: 1\n\ndata: 2\n")]), ["1"]);
});

test("who stops listening ends the stream", async () => {
  let isCancelled = false;
  const endless = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => {
      isCancelled = true;
    },
  });
  for await (const data of events(endless)) {
    assert.equal(data, "x");
    break;
  }
  assert.ok(isCancelled);
});

const chunk = (delta, more = {}) => ({ choices: [{ index: 0, delta, ...more }] });

test("an answer is put together of its chunks", () => {
  const answer = new Answer();
  answer.add(chunk({ role: "assistant", content: "" }));
  assert.ok(answer.isEmpty);
  answer.add(chunk({ reasoning: "hm", reasoning_content: "hm" }));
  answer.add(chunk({ content: "Let me " }, { logprobs: { content: [{ token: "Let" }] } }));
  answer.add(chunk({ content: "look." }));
  const named = { index: 0, id: "call-1", type: "function", function: { name: "find", arguments: "" } };
  answer.add(chunk({ tool_calls: [named] }));
  answer.add(chunk({ tool_calls: [{ index: 0, function: { arguments: '{"q":' } }] }));
  answer.add(chunk({ tool_calls: [{ index: 0, function: { arguments: "1}" } }] }));
  answer.add(chunk({}, { finish_reason: "tool_calls" }));
  answer.add({ choices: [], usage: { completion_tokens: 9 } });
  assert.deepEqual(answer.message, {
    role: "assistant",
    content: "Let me look.",
    reasoning_content: "hm",
    tool_calls: [{ id: "call-1", type: "function", function: { name: "find", arguments: '{"q":1}' } }],
  });
  assert.equal(answer.finishReason, "tool_calls");
  assert.equal(answer.usage.completion_tokens, 9);
  assert.equal(answer.tokens.length, 1);
});

test("an error in a stream is thrown in the server's words", () => {
  assert.throws(() => new Answer().add({ error: { message: "the engine has ended" } }), /has ended/);
});

const hello = [{ role: "user", content: "hello" }];

test("what is left empty is not asked for", () => {
  assert.deepEqual(chatBody(hello, { model: "", system: " ", temperature: "", stop: "", tools: "" }), {
    messages: hello,
    stream: true,
    stream_options: { include_usage: true },
  });
});

test("settings become fields of the request", () => {
  const tools = [{ type: "function", function: { name: "f" } }];
  const body = chatBody(hello, {
    model: "m",
    system: "be brief",
    temperature: "0",
    top_k: "5",
    stop: "a\n b",
    logprobs: "on",
    reasoning_effort: "low",
    tools: JSON.stringify(tools),
    tool_choice: "auto",
  });
  assert.deepEqual(body, {
    model: "m",
    messages: [{ role: "system", content: "be brief" }, ...hello],
    stream: true,
    stream_options: { include_usage: true },
    temperature: 0,
    top_k: 5,
    stop: ["a", " b"],
    logprobs: true,
    top_logprobs: 5,
    reasoning_effort: "low",
    tools,
    tool_choice: "auto",
  });
});

test("a schema is asked for as the form of the answer", () => {
  const schema = { type: "object" };
  const named = { name: "answer", schema, strict: true };
  const body = chatBody(hello, { schema: JSON.stringify(schema) });
  assert.deepEqual(body.response_format, { type: "json_schema", json_schema: named });
  assert.throws(() => chatBody(hello, { schema: "{" }), /no JSON/);
  assert.throws(() => chatBody(hello, { schema: "[]" }), /object/);
});

test("tools that are no JSON list are refused", () => {
  assert.throws(() => chatBody(hello, { tools: "{" }), /no JSON/);
  assert.throws(() => chatBody(hello, { tools: "{}" }), /list/);
});

const METRICS = `# HELP vllm:num_requests_running Sequences.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" {c}"} 3.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:cache_config_info{num_gpu_blocks="101",block_size="16"} 1.0
vllm:generation_tokens_total{engine="0"} 1e+03
jaxserve:steps_total{program="x"} 10.0
jaxserve:steps_total{program="y"} 5.0
jaxserve:step_phase_seconds_total{phase="wait"} 0.5
`;

test("the engine is read from Prometheus' text", () => {
  const engine = readEngine(parse(METRICS));
  assert.equal(engine.running, 3);
  assert.equal(engine.numPages, 100);
  assert.equal(engine.pages, 25);
  assert.equal(engine.generated, 1000);
  assert.equal(engine.steps, 15);
  assert.equal(parse(METRICS).get("vllm:num_requests_running")[0].labels.engine, "0");
});

test("rates are growth by time, and a counter that began anew has not grown", () => {
  const before = { generated: 100, prompt: 9, steps: 10, workSeconds: 1 };
  const after = { generated: 150, prompt: 0, steps: 20, workSeconds: 1.05 };
  const { generated, prompt, stepMs } = rates(before, after, 2);
  assert.equal(generated, 25);
  assert.equal(prompt, 0);
  assert.ok(Math.abs(stepMs - 5) < 1e-9);
  assert.equal(rates(before, before, 1).stepMs, null);
});

test("markdown is cut into blocks", () => {
  const blocks = markdown("# Title\nSome *text*\nmore\n\n- one\n- **two**\n\n```py\na = `1`\n- b\n```\n1. x");
  assert.deepEqual(blocks, [
    { type: "heading", level: 1, spans: ["Title"] },
    { type: "paragraph", spans: ["Some ", { type: "em", text: "text" }, "\nmore"] },
    {
      type: "list",
      isOrdered: false,
      start: 1,
      items: [
        { depth: 0, spans: ["one"] },
        { depth: 0, spans: [{ type: "strong", text: "two" }] },
      ],
    },
    { type: "code", language: "py", text: "a = `1`\n- b" },
    { type: "list", isOrdered: true, start: 1, items: [{ depth: 0, spans: ["x"] }] },
  ]);
});

test("no text is lost, whatever it holds", () => {
  const text = "2 * 3 * 4 = `2**3` <b>&amp; [a](javascript:1) ** * `";
  const plain = spans(text).map((span) => (typeof span === "string" ? span : span.text)).join("");
  assert.equal(plain.replaceAll(/[*`]/g, ""), text.replaceAll(/[*`]/g, ""));
});

test("a hostile text is read in time", () => {
  const began = performance.now();
  for (const text of ["`", "*", "**a ", "* a", "```a\n", "#", "- ", "1. "]) markdown(text.repeat(20_000));
  assert.ok(performance.now() - began < 5_000);
});
