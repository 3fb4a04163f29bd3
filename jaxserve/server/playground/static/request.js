// The body of a request, from the conversation and the form.

const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "presence_penalty",
  "frequency_penalty",
  "repetition_penalty",
  "max_tokens",
  "seed",
];
const TOP_LOGPROBS = 5;

/**
 * Return the body of a chat; a setting left empty is left out, so that the model's own default
 * holds. settings: the form's values by name. Throws for tools or a schema that are none.
 */
export function chatBody(messages, settings) {
  const system = settings.system?.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.model) body.model = settings.model;
  for (const name of NUMBERS) {
    const text = settings[name]?.trim();
    if (text) body[name] = Number(text);
  }
  const stop = (settings.stop ?? "").split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  if (settings.reasoning_effort) body.reasoning_effort = settings.reasoning_effort;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  const schema = readSchema(settings.schema);
  if (schema) {
    const named = { name: "answer", schema, strict: true };
    body.response_format = { type: "json_schema", json_schema: named };
  }
  const tools = readTools(settings.tools);
  if (tools.length) {
    body.tools = tools;
    if (settings.tool_choice) body.tool_choice = settings.tool_choice;
  }
  return body;
}

/** Return the tools that a text holds: a JSON list of them, or nothing. */
export function readTools(text) {
  if (!text?.trim()) return [];
  const tools = readJson(text, "the tools");
  if (!Array.isArray(tools)) throw new Error("the tools must be a JSON list");
  return tools;
}

/** Return the JSON schema that a text holds, null if it is empty. */
export function readSchema(text) {
  if (!text?.trim()) return null;
  const schema = readJson(text, "the schema");
  if (schema === null || typeof schema !== "object" || Array.isArray(schema)) {
    throw new Error("the schema must be a JSON object");
  }
  return schema;
}

function readJson(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what}: no JSON, ${error.message}`);
  }
}
