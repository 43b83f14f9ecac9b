"""One conversation, four providers, one memory: what the first is told, the others know.

pip install "memlayer-sdk[local,openai,anthropic,google-genai,ollama]"

Set what you have: OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY, and for Ollama OLLAMA_HOST, where it listens. For
others that speak the same formats there are OPENAI_BASE_URL, ANTHROPIC_BASE_URL and GOOGLE_GEMINI_BASE_URL.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from memlayer import MemoryStore, wrap
from memlayer.memory import UserMemory

TOLD = "I'm allergic to peanuts, and my daughter Mia is allergic to walnuts."
ASKED = "What may neither of us eat, my daughter or I?"


def openai(memory: UserMemory, text: str) -> str | None:
    """Says it to OpenAI."""
    from openai import OpenAI

    with OpenAI() as client:
        answer = wrap(client, memory, session="openai").chat.completions.create(
            model=os.environ.get("OPENAI_MODEL", "gpt-5.4-mini"), messages=[{"role": "user", "content": text}]
        )
    return answer.choices[0].message.content


def anthropic(memory: UserMemory, text: str) -> str | None:
    """Says it to Anthropic."""
    from anthropic import Anthropic

    with Anthropic() as client:
        answer = wrap(client, memory, session="anthropic").messages.create(
            model=os.environ.get("ANTHROPIC_MODEL", "claude-haiku-4-5"),
            max_tokens=1000,
            messages=[{"role": "user", "content": text}],
        )
    return "".join(block.text for block in answer.content if block.type == "text")


def google(memory: UserMemory, text: str) -> str | None:
    """Says it to Google."""
    from google.genai import Client

    with Client() as client:
        answer = wrap(client, memory, session="google").models.generate_content(
            model=os.environ.get("GEMINI_MODEL", "gemini-2.5-flash"), contents=text
        )
    return answer.text


def ollama(memory: UserMemory, text: str) -> str | None:
    """Says it to a model on this machine."""
    from ollama import Client

    answer = wrap(Client(), memory, session="ollama").chat(
        model=os.environ.get("OLLAMA_MODEL", "llama3.2"), messages=[{"role": "user", "content": text}]
    )
    return answer.message.content


PROVIDERS: Mapping[str, Callable[[UserMemory, str], str | None]] = {
    "OPENAI_API_KEY": openai,
    "ANTHROPIC_API_KEY": anthropic,
    "GEMINI_API_KEY": google,
    "OLLAMA_HOST": ollama,
}
"""By the variable that says that it is there."""


def converse(memory: UserMemory, variables: Iterable[str]) -> None:
    """Tells the first provider, and asks each of them."""
    texts = [TOLD, ASKED]
    for say in (PROVIDERS[variable] for variable in variables):
        try:
            for text in texts:
                print(f"\nyou: {text}\n{say.__name__}: {say(memory, text)}")
            texts = [ASKED]
        except ImportError as missing:
            print(f"\n{say.__name__}: {missing.name} is not installed")


if __name__ == "__main__":
    if there := [variable for variable in PROVIDERS if os.environ.get(variable)]:
        with MemoryStore.open("providers.db") as store:
            converse(store.user("me"), there)
    else:
        print(f"Set two or more of {', '.join(PROVIDERS)}")
