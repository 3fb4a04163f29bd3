"""Requests with fields that have no effect."""

from typing import Any

HEADER = "x-jaxserve-ignored"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TOP = {f"extra_{index}": index for index in range(7)}
PART = {"type": "text", "text": "hello", "x_part": {"deep": [1]}}
TURNS = [{"role": "user", "content": [PART], "x_turn": 1}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "x-own": 1}, "x_function": True}


def names_of(answer: Any) -> list[str]:
    header = answer.headers.get(HEADER)
    return header.split(", ") if header else []
