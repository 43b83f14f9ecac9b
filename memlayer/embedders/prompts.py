"""What a model family's authors put before a text, for models whose own configuration does not say it.

A model that was trained with prompts and gets none still gives vectors, only worse ones, and nothing throws an error.
Newer models carry their prompts in `config_sentence_transformers.json`; those always win. The table here is for
published models that came before that file, recognised by their exact name: a fine-tune under another name may have
been trained otherwise, and gets nothing that it does not ask for.

Sources: the model cards of intfloat/e5-*, intfloat/multilingual-e5-*, intfloat/e5-mistral-7b-instruct,
Salesforce/SFR-Embedding-Mistral and -2_R, BAAI/bge-*, nomic-ai/nomic-embed-text-* and Qwen/Qwen3-Embedding-*.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Prompts", "configured", "published"]


class Prompts(NamedTuple):
    """What stands before a remembered text, and before a query; "" for nothing."""

    document: str = ""
    query: str = ""


_INSTRUCTION: Final = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# By the last part of the name, without regard to case.
_FAMILIES: Final = (
    (r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", Prompts("passage: ", "query: ")),
    (r"(e5-mistral-7b|multilingual-e5-large)-instruct", Prompts("", _INSTRUCTION + " ")),
    (r"sfr-embedding-(mistral|2_r)", Prompts("", _INSTRUCTION + " ")),
    (
        r"bge-(small|base|large)-en(-v1\.5)?",
        Prompts("", "Represent this sentence for searching relevant passages: "),
    ),
    (r"bge-(small|base|large)-zh(-v1\.5)?", Prompts("", "为这个句子生成表示以用于检索相关文章：")),  # noqa: RUF001
    (r"nomic-embed-text-v(1|1\.5|2-moe)", Prompts("search_document: ", "search_query: ")),
    (r"qwen3-embedding-(0\.6b|4b|8b)", Prompts("", _INSTRUCTION)),
)

# The names that sentence-transformers looks for in its `encode_document`, in its order.
_DOCUMENT: Final = ("document", "passage", "corpus")


def configured(settings: Mapping[str, object]) -> Prompts | None:
    """The prompts in a `config_sentence_transformers.json`; None where it has none for a role.

    Args:
        settings: the file's content. A blank prompt is one that nobody filled in: sentence-transformers writes blanks
            for both roles into every model that it saves.
    """
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return None
    query = prompts.get("query")
    found = Prompts(
        document=next(
            (prompts[name] for name in _DOCUMENT if isinstance(prompts.get(name), str) and prompts[name]), ""
        ),
        query=query if isinstance(query, str) else "",
    )
    return found if any(found) else None


def published(model: str) -> Prompts | None:
    """The prompts that the authors of this model publish; None for a model that is not in the table.

    Args:
        model: a hub name or the name of a folder, such as "intfloat/e5-small-v2" or "e5-small-v2".
    """
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return next((prompts for pattern, prompts in _FAMILIES if re.fullmatch(pattern, name)), None)
