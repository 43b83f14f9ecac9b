"""What is known of embedding models without asking anybody: lengths of vectors, roles, windows.

Two sources, in this order: the tables here, which decide identities and therefore change only with a reason, and the
list of models that LiteLLM brings along, read as a file, because importing LiteLLM takes seconds.

A role is written as it goes into the identity: "input_type=search_query" is an argument of the provider,
anything else a prefix of the text, and "" is neither.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Facts", "facts", "full_name", "mode_of"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one model at one provider.

    Attributes:
        dimensions: how long its vectors are when nothing is asked for; None where nobody knows.
        choices: the other lengths that it can be asked for; () for none, None where nobody knows, and ("any",) for all
            that are shorter.
        can_ask: whether LiteLLM has a way to ask this provider for a length.
        window: how many tokens it reads; None where nobody knows.
        document_role: how the provider or the text says that it is something to be found.
        query_role: how it says that it asks.
        batch: how many texts the provider takes at once.
    """

    dimensions: int | None
    choices: tuple[int | str, ...] | None
    can_ask: bool
    window: int | None
    document_role: str
    query_role: str
    batch: int


class _Roles(NamedTuple):
    document: str
    query: str


class _Model(NamedTuple):
    pattern: str
    dimensions: int | None
    choices: tuple[int | str, ...] = ()
    window: int | None = None
    roles: _Roles = _Roles("", "")


_ANY: Final = ("any",)
_SENTENCE: Final = _Roles("", "Represent this sentence for searching relevant passages: ")
_E5: Final = _Roles("passage: ", "query: ")
_INSTRUCT: Final = _Roles(
    "", "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
)
_GEMMA: Final = _Roles("title: none | text: ", "task: search result | query: ")

# By the name of the model, wherever it is served; the first that is found in it. Sources: the providers' pages and the
# models' cards. The prefixes count where the provider has no input types of its own.
_MODELS: Final = (
    _Model(r"text-embedding-3-small", 1536, _ANY, 8191),
    _Model(r"text-embedding-3-large", 3072, _ANY, 8191),
    _Model(r"text-embedding-ada-002", 1536, (), 8191),
    _Model(r"embed-v-?4", 1536, (256, 512, 1024, 1536), 128_000),
    _Model(r"embed-(english|multilingual)-light", 384, (), 512),
    _Model(r"embed-(english|multilingual)-v2", 4096, (), 512),
    _Model(r"embed-(english|multilingual)|embed-v3-(english|multilingual)", 1024, (), 512),
    _Model(r"voyage-(3-large|3\.5|4|code-[34]|context-[34])", 1024, (256, 512, 1024, 2048), 32_000),
    _Model(r"voyage-3-lite", 512, (), 32_000),
    _Model(r"voyage-(3|multilingual-2|finance-2|multimodal-3)$", 1024, (), 32_000),
    _Model(r"voyage-law-2", 1024, (), 16_000),
    _Model(r"gemini-embedding-2", 3072, _ANY, 8192, _GEMMA),
    _Model(r"gemini-embedding-001|gemini-embedding-exp", 3072, _ANY, 2048),
    _Model(r"text-embedding-00[45]|text-multilingual-embedding-002", 768, _ANY, 2048),
    _Model(r"embeddinggemma", 768, _ANY, 2048, _GEMMA),
    _Model(r"codestral-embed", 1536, _ANY, 8192),
    _Model(r"mistral-embed", 1024, (), 8192),
    _Model(r"jina-embeddings-v3", 1024, _ANY, 8192),
    _Model(r"jina-embeddings-v4", 2048, _ANY, 32_768),
    _Model(r"jina-embeddings-v2-base", 768, (), 8192),
    _Model(r"titan-embed-text-v2", 1024, (256, 512, 1024), 8192),
    _Model(r"titan-embed-(text-v1|g1-text)", 1536, (), 8192),
    _Model(
        r"nv-embed-v[12]",
        4096,
        (),
        32_768,
        _Roles("", "Instruct: Given a question, retrieve passages that answer the question\nQuery: "),
    ),
    _Model(r"nv-embedqa-e5-v5", 1024, (), 512),
    _Model(r"nv-embedqa-mistral-7b", 4096, (), 512),
    _Model(r"nv-embedqa-1b-v2", 2048, _ANY, 8192),
    _Model(r"nomic-embed-text", 768, _ANY, 2048, _Roles("search_document: ", "search_query: ")),
    _Model(r"mxbai-embed-large", 1024, _ANY, 512, _SENTENCE),
    _Model(r"arctic-embed2|arctic-embed-l-v2", 1024, _ANY, 8192, _Roles("", "query: ")),
    _Model(r"arctic-embed", None, (), 512, _SENTENCE),
    _Model(r"all-minilm-l12", 384, (), 128),
    _Model(r"all-minilm", 384, (), 256),
    _Model(r"all-mpnet-base", 768, (), 384),
    _Model(r"bge-m3", 1024, (), 8192),
    _Model(r"bge-small-en", 384, (), 512, _SENTENCE),
    _Model(r"bge-base-en", 768, (), 512, _SENTENCE),
    _Model(r"bge-large-en", 1024, (), 512, _SENTENCE),
    _Model(r"uae-large", 1024, (), 512, _SENTENCE),
    _Model(r"gte-large", 1024, (), 512),
    _Model(r"gte-base", 768, (), 512),
    _Model(r"qwen3-embedding.?0[p.]6b", 1024, _ANY, 32_768, _INSTRUCT),
    _Model(r"qwen3-embedding.?4b", 2560, _ANY, 32_768, _INSTRUCT),
    _Model(r"qwen3-embedding.?8b", 4096, _ANY, 32_768, _INSTRUCT),
    _Model(r"e5-mistral-7b|sfr-embedding-(mistral|2)", 4096, (), 4096, _INSTRUCT),
    _Model(r"e5-large-instruct", 1024, (), 512, _INSTRUCT),
    _Model(r"e5-small", 384, (), 512, _E5),
    _Model(r"e5-base", 768, (), 512, _E5),
    _Model(r"e5-large", 1024, (), 512, _E5),
)

_COHERE: Final = _Roles("input_type=search_document", "input_type=search_query")
_GOOGLE: Final = _Roles("input_type=RETRIEVAL_DOCUMENT", "input_type=RETRIEVAL_QUERY")  # LiteLLM makes it task_type
# By provider, and a pattern that the model's name must have: what goes before the prefixes of the model.
_PROVIDERS: Final = (
    ("cohere", "", _COHERE),
    ("cohere_chat", "", _COHERE),
    ("oci", "cohere", _COHERE),
    ("bedrock", "cohere", _COHERE),
    ("bedrock", "nova", _Roles("embeddingPurpose=GENERIC_INDEX", "embeddingPurpose=TEXT_RETRIEVAL")),
    ("azure_ai", "embed-v|cohere", _Roles("input_type=document", "input_type=query")),
    ("voyage", "", _Roles("input_type=document", "input_type=query")),
    ("nvidia_nim", "", _Roles("input_type=passage", "input_type=query")),
    ("gemini", r"embedding-(001|exp)", _GOOGLE),
    ("vertex_ai", r"gemini-embedding-(001|exp)|text-(multilingual-)?embedding|text-embedding", _GOOGLE),
    ("jina_ai", r"jina-embeddings-v[3-9]", _Roles("task=retrieval.passage", "task=retrieval.query")),
)
# Where LiteLLM passes a length on (for `openai`, memlayer has to allow it by name).
_CAN_ASK: Final = frozenset(
    {"openai", "azure", "azure_ai", "cohere", "cohere_chat", "voyage", "nvidia_nim", "gemini", "vertex_ai", "jina_ai"}
    | {"bedrock", "ollama", "fireworks_ai", "openrouter", "litellm_proxy", "hosted_vllm", "oci"}
)
# Texts at once. Most take more, and gain nothing by it.
_BATCH: Final = 64
_BATCHES: Final = {
    # One text a request is all that these take: LiteLLM would make one vector of several, or the provider refuse.
    ("vertex_ai", "gemini-embedding"): 1,
    ("nvidia_nim", ""): 32,
    ("mistral", ""): 32,
}
# Names of models that only write, for those that LiteLLM's list does not have.
_WRITERS: Final = re.compile(r"^(gpt-|chatgpt|o\d(-|$)|claude|command-|grok|deepseek-(chat|reasoner)|gemini-\d)")
_MEASURES: Final = re.compile(r"embed|e5|bge|gte|minilm", re.IGNORECASE)


def full_name(name: str) -> str:
    """ "<provider>/<model>", also from a bare name that LiteLLM's list has.

    Raises:
        InvalidInputError: the name is empty, has no provider that is known, or is a chat model's.
    """
    if not isinstance(name, str) or not name.strip("/ ") or len(name) > 512:
        raise InvalidInputError('model must be a name such as "openai/text-embedding-3-small"')
    if "/" not in name:
        entry = _list().get(name)
        if entry is None:
            raise InvalidInputError(f"{name!r} does not say whose model it is: write it as <provider>/{name}")
        # "vertex_ai-embedding-models" and the like
        name = f"{str(entry.get('litellm_provider')).partition('-')[0]}/{name}"
    _refuse_writers(name)
    return name


def facts(name: str) -> Facts:
    """What is known of `full_name(name)`."""
    provider, _, model = name.partition("/")
    lower = model.lower()
    entry = _entry(name) or {}
    known = next((one for one in _MODELS if re.search(one.pattern, lower)), None)
    listed = entry.get("output_vector_size")
    roles = next((roles for who, part, roles in _PROVIDERS if who == provider and re.search(part, lower)), None)
    if roles is None:
        roles = known.roles if known else _Roles("", "")
    # 0 and None are both "not known" in that list.
    window = entry.get("max_input_tokens") or (known.window if known else None)
    return Facts(
        dimensions=known.dimensions if known else int(listed) if listed else None,
        choices=known.choices if known else None,
        can_ask=provider in _CAN_ASK,
        window=int(window) if window else None,
        document_role=roles.document,
        query_role=roles.query,
        batch=next((n for (who, part), n in _BATCHES.items() if who == provider and part in lower), _BATCH),
    )


def mode_of(name: str) -> str | None:
    """What LiteLLM's list says that a model is for, such as "embedding", "chat" or "rerank"; None where it does not."""
    mode = (_entry(name) or {}).get("mode")
    return str(mode) if mode else None


def _refuse_writers(name: str) -> None:
    model = name.rpartition("/")[2]
    mode = mode_of(name)
    if mode is None and _WRITERS.match(model.lower()) and not _MEASURES.search(model):
        mode = "chat"
    if mode in ("chat", "completion", "responses"):
        raise InvalidInputError(
            f"{name} is a chat model: an LLM writes answers and an embedder measures meaning, so it has no vectors to "
            'give; name an embedding model, such as "openai/text-embedding-3-small"',
            model=name,
        )
    if mode not in (None, "embedding"):
        raise InvalidInputError(f"{name} is a model for {mode}, and has no vectors of texts to give", model=name)


def _entry(name: str) -> Mapping[str, Any] | None:
    """The entry of LiteLLM's list: under the full name, without the tag of Ollama, or under the bare name."""
    provider, _, model = name.partition("/")
    listed = _list()
    for key in (name, name.partition(":")[0] if provider == "ollama" else name):
        if key in listed:
            return listed[key]
    entry = listed.get(model)
    return entry if entry and str(entry.get("litellm_provider")).partition("-")[0] == provider else None


def _list() -> Mapping[str, Mapping[str, Any]]:
    # What an application has registered counts, if LiteLLM is there already.
    loaded = getattr(sys.modules.get("litellm"), "model_cost", None)
    return loaded if isinstance(loaded, dict) else _file()


@functools.cache
def _file() -> Mapping[str, Mapping[str, Any]]:
    """LiteLLM's list of models; empty where a later LiteLLM keeps it elsewhere, which only means to know less."""
    spec = importlib.util.find_spec("litellm")
    for place in (spec and spec.submodule_search_locations) or ():
        try:
            found = json.loads((Path(place) / "model_prices_and_context_window_backup.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}
