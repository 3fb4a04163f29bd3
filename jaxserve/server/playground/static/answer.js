// What the assistant says in one turn, put together from the chunks of a stream.

export class Answer {
  role = "assistant";
  content = "";
  reasoning = "";
  toolCalls = [];
  tokens = [];
  finishReason = null;
  usage = null;

  /** Take in one chunk of /v1/chat/completions. Throws for the error that ends a broken stream. */
  add(chunk) {
    if (chunk.error) throw new Error(chunk.error.message ?? "the stream broke");
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    this.content += delta.content ?? "";
    this.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
    for (const piece of delta.tool_calls ?? []) {
      const call = (this.toolCalls[piece.index] ??= { id: "", name: "", arguments: "" });
      call.id = piece.id ?? call.id;
      call.name += piece.function?.name ?? "";
      call.arguments += piece.function?.arguments ?? "";
    }
    for (const token of choice.logprobs?.content ?? []) this.tokens.push(token);
    this.finishReason = choice.finish_reason ?? this.finishReason;
  }

  get isEmpty() {
    return !this.content && !this.reasoning && !this.toolCalls.length;
  }

  /** The message that tells the model, in the next turn, what it said. */
  get message() {
    const message = { role: "assistant", content: this.content };
    if (this.reasoning) message.reasoning_content = this.reasoning;
    if (this.toolCalls.length) {
      message.tool_calls = this.toolCalls.map(({ id, name, arguments: text }) => ({
        id,
        type: "function",
        function: { name, arguments: text },
      }));
    }
    return message;
  }
}
