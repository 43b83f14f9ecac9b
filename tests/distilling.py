"""Models that write facts, for tests: they read the records of a request as a model would, and answer by rules."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Messages = list[dict[str, str]]


def records(messages: Messages) -> list[dict[str, Any]]:
    """The records of a request, in their order."""
    lines = messages[-1]["content"].splitlines()
    return [json.loads(line) for line in lines[1:-1]]


def turns(messages: Messages) -> dict[int, str]:
    """The turns of a request, by number."""
    return {record["turn"]: record["text"] for record in records(messages) if "turn" in record}


def known(messages: Messages) -> dict[int, str]:
    """The known facts of a request, by number."""
    return {record["fact"]: record["text"] for record in records(messages) if "fact" in record}


@dataclass
class Scribe:
    """Writes facts by rules.

    Attributes:
        rules: where a turn has the first text in it, the second one is a fact; it takes the place of each known fact
            that has the third one in it, if there is a third one.
        requests: what it was asked, in order.
        before: is called with each request, before the answer.
    """

    rules: list[tuple[str, ...]] = field(default_factory=list)
    requests: list[Messages] = field(default_factory=list)
    before: Callable[[Messages], object] | None = None

    def __call__(self, messages: Messages) -> str:
        self.requests.append(messages)
        if self.before is not None:
            self.before(messages)
        found = []
        for said, fact, *replaced in self.rules:
            numbers = [number for number, text in turns(messages).items() if said in text]
            old = [number for number, text in known(messages).items() if replaced and replaced[0] in text]
            if numbers:
                found.append({"fact": fact, "sources": numbers, "supersedes": old})
        return json.dumps(found)
