"""Invalid bodies of requests, and the errors that they get."""

from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]
DEEP = b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, "max_tokens": 2, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "hello", "max_tokens": 2, **fields}


def with_message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello", **fields}]}


# Bytes that are no request at all: nothing to name but the body.
NO_JSON = [
    b"",
    b"hello",
    b"{",
    b'{"prompt": "x"} {}',
    b'{"prompt": "x",}',
    b"{'prompt': 'x'}",
    b'\xef\xbb\xbf{"prompt": "x"}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\udc00 tail"}',
    b'{"prompt": "a\nb"}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": -Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "logit_bias": {"1": -1e999}}',
    b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
    DEEP,
    b"[]",
    b"null",
    b'"hello"',
    b"5",
]
# path, body, param, and what the message must say
FIELDS: list[tuple[str, Any, str, str]] = [
    # Missing fields, and unknown ones where a mistyped name would leave a constraint out
    (
        TEXT,
        text(structured_outputs={"json": {}, "patern": "a"}),
        "structured_outputs.patern",
        "no field",
    ),
    (
        TEXT,
        text(response_format={"type": "json_object", "schema": {}}),
        "response_format.schema",
        "no field",
    ),
    (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "shema": {}}}),
        "response_format.json_schema.shema",
        "no field",
    ),
    (
        TEXT,
        text(repetition_detection={"max_pattern_size": 2, "count": 3}),
        "repetition_detection.count",
        "no field",
    ),
    (TEXT, {"max_tokens": 2, "promt": "a"}, "prompt", "required"),
    (TEXT, {"max_tokens": 2}, "prompt", "required"),
    (CHAT, {"max_tokens": 2}, "messages", "required"),
    (TEXT, text(model=7), "model", "string, got 7"),
    # Prompts
    (TEXT, text(prompt=[]), "prompt", "not empty"),
    (TEXT, text(prompt=""), "prompt", "at least one token"),
    (TEXT, text(prompt=[[]]), "prompt", "at least one token"),
    (TEXT, text(prompt=5), "prompt", "got 5"),
    (TEXT, text(prompt={"text": "x"}), "prompt", "token ids"),
    (TEXT, text(prompt=[1, "a"]), "prompt", "token ids"),
    (TEXT, text(prompt=[True, False]), "prompt", "token ids"),
    (TEXT, text(prompt=[1.5]), "prompt", "token ids"),
    (TEXT, text(prompt=[[1, 2], 3]), "prompt", "token ids"),
    (TEXT, text(prompt=[["a"]]), "prompt", "token ids"),
    (TEXT, text(prompt=[-1]), "prompt", "[0, 319], got -1"),
    (TEXT, text(prompt=[320]), "prompt", "out of vocabulary: ids must be in [0, 319], got 320"),
    (TEXT, text(prompt=[2**70]), "prompt", "[0, 319]"),
    (TEXT, text(prompt=["a"] * 257), "n", "at most 256"),
    (TEXT, text(prompt=["a"] * 60, n=5), "n", "at most 256"),
    # Lengths
    (TEXT, text(prompt=[5] * 128), "prompt", "maximum context length is 128"),
    (TEXT, text(prompt=[5] * 100, max_tokens=29), "max_tokens", "maximum context length is 128"),
    (TEXT, text(prompt="z" * 200_000), "prompt", "maximum context length is 128"),
    (TEXT, text(prompt=[5] * 128), "prompt", "Please reduce the length of the input prompt"),
    (TEXT, text(prompt=[5] * 100, max_tokens=29), "max_tokens", "reduce the length of the input"),
    (TEXT, text(prompt="z" * 200_000), "prompt", "Please reduce the length of the input prompt"),
    (CHAT, chat(messages=[{"role": "user", "content": "z" * 5000}]), "messages", "maximum context"),
    (CHAT, chat(messages=HELLO * 5000), "messages", "at most 4096"),
    (CHAT, chat(max_completion_tokens=128), "max_completion_tokens", "maximum context length"),
    # Where nothing limits the answer but the context, an int32 on the device would overflow.
    (
        CHAT,
        chat(max_tokens=None, min_tokens=2**31 - 1),
        "min_tokens",
        "maximum context length is 128",
    ),
    # Kinds: no strings for numbers, no numbers for booleans, no booleans for numbers
    (TEXT, text(temperature="1"), "temperature", "number, got '1'"),
    (TEXT, text(temperature=True), "temperature", "number, got True"),
    (TEXT, text(temperature=[1]), "temperature", "number, got [1]"),
    (TEXT, text(n=1.5), "n", "integer, got 1.5"),
    (TEXT, text(n=True), "n", "integer, got True"),
    (TEXT, text(n="2"), "n", "integer, got '2'"),
    (TEXT, text(max_tokens=2.0), "max_tokens", "integer, got 2.0"),
    (TEXT, text(seed=False), "seed", "integer, got False"),
    (TEXT, text(stream=1), "stream", "true or false, got 1"),
    (TEXT, text(stream="yes"), "stream", "true or false, got 'yes'"),
    (TEXT, text(echo=0), "echo", "true or false, got 0"),
    (TEXT, text(stream=True, stream_options=True), "stream_options", "object, got True"),
    (TEXT, text(logprobs=True), "logprobs", "integer, got True"),
    (CHAT, chat(logprobs=5), "logprobs", "true or false, got 5"),
    # Ranges
    (TEXT, text(temperature=-0.1), "temperature", "[0, 100], got -0.1"),
    (TEXT, text(temperature=101), "temperature", "[0, 100], got 101"),
    (TEXT, text(top_p=0), "top_p", "(0, 1], got 0"),
    (TEXT, text(top_p=1.1), "top_p", "(0, 1], got 1.1"),
    (TEXT, text(top_k=-2), "top_k", "in [-1, 2147483647], got -2"),
    (TEXT, text(top_k=2**40), "top_k", "at most 2147483647"),
    (TEXT, text(min_p=1.5), "min_p", "[0, 1], got 1.5"),
    (TEXT, text(presence_penalty=2.5), "presence_penalty", "[-2, 2], got 2.5"),
    (TEXT, text(frequency_penalty=-3), "frequency_penalty", "[-2, 2], got -3"),
    (TEXT, text(repetition_penalty=0), "repetition_penalty", "[0.01, 10], got 0"),
    (TEXT, text(n=0), "n", "[1, 128], got 0"),
    (TEXT, text(n=129), "n", "[1, 128], got 129"),
    (TEXT, text(n=2**64), "n", "at most 256"),
    (TEXT, text(seed=2**63), "seed", "got 9223372036854775808"),
    (TEXT, text(max_tokens=0), "max_tokens", "in [1, 2147483647], got 0"),
    (TEXT, text(max_tokens=-5), "max_tokens", "in [1, 2147483647], got -5"),
    (TEXT, text(max_tokens=2**31), "max_tokens", "at most 2147483647"),
    (CHAT, chat(max_completion_tokens=0), "max_completion_tokens", "in [1, 2147483647], got 0"),
    (TEXT, text(min_tokens=3), "min_tokens", "at most max_tokens (2), got 3"),
    (TEXT, text(min_tokens=-1), "min_tokens", "in [0, 2147483647], got -1"),
    (TEXT, text(logprobs=21), "logprobs", "[0, 20], got 21"),
    (TEXT, text(logprobs=-1), "logprobs", "[0, 20], got -1"),
    (TEXT, text(prompt_logprobs=21), "prompt_logprobs", "[0, 20], got 21"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs", "[0, 20], got 21"),
    (CHAT, chat(top_logprobs=2), "top_logprobs", "logprobs=true"),
    (TEXT, text(priority=2**40), "priority", "at most 2147483647"),
    # Lists
    (TEXT, text(stop=5), "stop", "string or a list of strings, got 5"),
    (TEXT, text(stop=[1]), "stop", "string or a list of strings"),
    (TEXT, text(stop=[""]), "stop", "1 to 256 characters"),
    (TEXT, text(stop="x" * 257), "stop", "1 to 256 characters"),
    (TEXT, text(stop=["x"] * 17), "stop", "at most 16 entries, got 17"),
    (TEXT, text(stop_token_ids=5), "stop_token_ids", "list, got 5"),
    (TEXT, text(stop_token_ids=["5"]), "stop_token_ids[0]", "integer, got '5'"),
    (TEXT, text(stop_token_ids=[320]), "stop_token_ids", "[0, 319], got 320"),
    (TEXT, text(stop_token_ids=[1] * 65), "stop_token_ids", "at most 64 entries, got [1, 1"),
    (TEXT, text(allowed_token_ids=[]), "allowed_token_ids", "at least 1 entries"),
    (TEXT, text(allowed_token_ids=[-1]), "allowed_token_ids[0]", "at least 0, got -1"),
    (TEXT, text(bad_words=[""]), "bad_words", "non-empty strings"),
    (TEXT, text(bad_words=["a"] * 33), "bad_words", "at most 32 entries, got 33"),
    (TEXT, text(bad_words=["a very long phrase indeed"]), "bad_words", "at most 8 tokens"),
    (TEXT, text(logit_bias=[1]), "logit_bias", "object"),
    (TEXT, text(logit_bias={"a": 1}), "logit_bias", "token ids"),
    (TEXT, text(logit_bias={"5": "1"}), "logit_bias", "numbers"),
    (TEXT, text(logit_bias={"5": 101}), "logit_bias", "[-100, 100], got 101"),
    (TEXT, text(logit_bias={"320": 1}), "logit_bias", "[0, 319], got 320"),
    # Text that becomes a key or an id
    (TEXT, text(cache_salt="a@b"), "cache_salt", "matches"),
    (TEXT, text(cache_salt="s" * 129), "cache_salt", "matches"),
    (TEXT, text(request_id="a b"), "request_id", "matches"),
    (TEXT, text(request_id="a\r\nx-evil: 1"), "request_id", "matches"),
    # Fields that are right alone
    (TEXT, text(stream_options={"include_usage": True}), "stream_options", "stream=true"),
    (TEXT, text(stream=True, prompt_logprobs=1), "prompt_logprobs", "stream=true"),
    (TEXT, text(stream=True, echo=True, logprobs=1, n=2), "n", "n=1, got n=2"),
    (
        CHAT,
        chat(continue_final_message=True, add_generation_prompt=True),
        "continue_final_message",
        "cannot both be true",
    ),
    (TEXT, text(priority=1), "priority", "schedules by arrival, got 1"),
    # Messages
    (CHAT, {"messages": []}, "messages", "at least 1 entries"),
    (CHAT, {"messages": "hello"}, "messages", "list, got 'hello'"),
    (CHAT, {"messages": ["hello"]}, "messages[0]", "object, got 'hello'"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "required"),
    (CHAT, with_message(role="a wizard"), "messages[0].role", "got 'a wizard'"),
    (CHAT, with_message(content=5), "messages[0].content", "a string or a list, got 5"),
    (CHAT, with_message(content=None), "messages[0].content", "required"),
    (CHAT, with_message(content=["x"]), "messages[0].content[0]", "an object"),
    (CHAT, with_message(content=[{"type": "text"}]), "messages[0].content[0].text", "required"),
    (
        CHAT,
        with_message(content=[{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]),
        "messages[0].content[0]",
        "'image_url' is not supported",
    ),
    (
        CHAT,
        with_message(content=[{"type": "input_audio", "input_audio": {}}]),
        "messages[0].content[0]",
        "'input_audio' is not supported",
    ),
    (CHAT, with_message(role="tool"), "messages[0].tool_call_id", "required"),
    (
        CHAT,
        with_message(role="assistant", tool_calls=[{**CALL, "type": "mcp"}]),
        "messages[0].tool_calls[0]",
        "a call of type function or custom",
    ),
    (
        CHAT,
        with_message(
            role="assistant",
            tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}],
        ),
        "messages[0].tool_calls[0].function.arguments",
        "a string, got {}",
    ),
    # Tools and templates
    (CHAT, chat(tools=[{"type": "other"}]), "tools[0]", "a tool of type function or custom"),
    (CHAT, chat(tools=[{"type": "custom"}]), "tools[0].custom", "required"),
    (CHAT, chat(tool_choice={"type": "web_search"}), "tool_choice", "runs no tools of its own"),
    (CHAT, chat(tools=[{"type": "function"}]), "tools[0].function", "required"),
    (
        CHAT,
        chat(tools=[{**TOOL, "function": {"name": "a b"}}]),
        "tools[0].function.name",
        "matches",
    ),
    (CHAT, chat(tools=[TOOL] * 257), "tools", "at most 256 entries"),
    (CHAT, chat(tool_choice="required"), "tool_choice", "if tools are given"),
    (
        CHAT,
        chat(tools=[TOOL], tool_choice={"type": "function"}),
        "tool_choice.function",
        "required",
    ),
    (CHAT, chat(tools=[TOOL], tool_choice="maybe"), "tool_choice", "'auto'"),
    (CHAT, chat(documents=[{"text": "x"}]), "documents", "no place"),
    (CHAT, chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs", "'messages'"),
    (CHAT, chat(chat_template_kwargs={"chat_template": "x"}), "chat_template_kwargs", "template"),
    (CHAT, chat(chat_template_kwargs={"tokenize": True}), "chat_template_kwargs", "'tokenize'"),
    (CHAT, chat(chat_template_kwargs=["x"]), "chat_template_kwargs", "object"),
    (CHAT, chat(chat_template="{{ 'a' * 10**9 }}"), "chat_template", "trust-request"),
    (CHAT, chat(reasoning_effort="huge"), "reasoning_effort", "got 'huge'"),
    # Known, and not served
    (CHAT, chat(response_format="text"), "response_format", "an object"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities", "text only"),
    (CHAT, chat(audio={"voice": "alloy"}), "audio", "text only"),
    (
        CHAT,
        with_message(role="assistant", function_call={"name": "f", "arguments": "{}"}),
        "messages[0].function_call",
        "use tool_choice",
    ),
    (CHAT, with_message(role="assistant", audio={"id": "a"}), "messages[0].audio", "text only"),
    (CHAT, chat(functions=[{"name": "f"}]), "functions", "use tools"),
    (TEXT, text(suffix="tail"), "suffix", "not supported"),
    (TEXT, text(best_of=2), "best_of", "not supported"),
    (TEXT, text(best_of=True), "best_of", "not supported"),
    (TEXT, text(prompt_embeds="AAAA"), "prompt_embeds", "text or token ids"),
    # The other endpoints
    ("/tokenize", {}, "prompt", "required"),
    ("/tokenize", {"prompt": ["a"]}, "prompt", "string, got ['a']"),
    ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ("/detokenize", {"tokens": "abc"}, "tokens", "list, got 'abc'"),
    ("/detokenize", {"tokens": [True]}, "tokens[0]", "integer, got True"),
    ("/detokenize", {"tokens": [320]}, "tokens", "[0, 319], got 320"),
]
