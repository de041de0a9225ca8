"""The two turns of a conversation, in the form that chat templates take."""

from __future__ import annotations


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
