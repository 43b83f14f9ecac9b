"""What can be wrong with retrieval in a user's store, told from the turns and their vectors alone. Pure functions.

Each looks for one thing and gives a `Finding`, or None where there is nothing to tell. The thresholds are set so that a
store that works has none: what every chat has some of (copies, short turns) counts only where there is much of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from memlayer.ranking import ALIKE, ALIKE_UNKNOWN
from memlayer.slices import UNKNOWN, count_words, written_language
from memlayer.words import is_unspaced

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from memlayer.embedders.protocol import EmbedderIdentity
    from memlayer.records import Memory

__all__ = [
    "Chart",
    "Finding",
    "Kind",
    "Shape",
    "collapsed",
    "copies",
    "few_words",
    "near_copies",
    "no_sessions",
    "no_speakers",
    "one_source",
    "one_time",
    "role_prompts",
    "shape",
    "strange_languages",
    "uncalibrated",
]  # fmt: skip

Kind: TypeAlias = Literal[
    "truncated", "collapsed", "wrong_role", "swapped_roles", "no_roles", "strange_vectors", "duplicates",
    "near_duplicates", "few_words", "language", "unanswered", "uncalibrated", "one_source", "one_time", "no_sessions",
    "no_speakers",
]  # fmt: skip

# With fewer turns nothing is the rule and nothing the exception.
_FEW: Final = 10
_FEW_VECTORS: Final = 30
# Two texts that have nothing to do with each other: .1 by all-MiniLM-L6-v2, .75 by the E5 family, which was trained so.
_COLLAPSED: Final = 0.9
_LEAST_RANK: Final = 0.05
_COPIES, _NEAR_COPIES, _SHORT, _STRANGE = 0.1, 0.2, 0.4, 0.1
_MOST: Final = 0.5
_MOST_ASSISTANT: Final = 0.8
_FEW_WORDS: Final = 2

# Models that were trained with another prompt for questions than for documents.
_WITH_ROLES = re.compile(
    r"(?:^|[/_-])(?:e5|bge(?!-m3)|nomic-embed|instructor|qwen3-embedding|gte-qwen|sfr-embedding|nv-embed"
    r"|snowflake-arctic-embed|mxbai-embed|jina-embeddings-v3|embeddinggemma)",
    re.IGNORECASE,
)
_QUERY = re.compile(r"quer(?:y|ies)|question", re.IGNORECASE)
_DOCUMENT = re.compile(r"passage|document", re.IGNORECASE)

# ISO 639-1 of the languages that `written_language` tells.
_CODES: Final = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "dutch": "nl", "swedish": "sv", "danish": "da", "norwegian": "no", "finnish": "fi", "hungarian": "hu",
    "romanian": "ro", "turkish": "tr", "polish": "pl", "czech": "cs", "indonesian": "id", "catalan": "ca",
    "estonian": "et", "lithuanian": "lt", "irish": "ga", "basque": "eu", "esperanto": "eo", "serbian": "sr",
    "russian": "ru", "greek": "el", "arabic": "ar", "persian": "fa", "hindi": "hi", "nepali": "ne", "tamil": "ta",
    "armenian": "hy", "yiddish": "yi", "chinese": "zh", "japanese": "ja", "korean": "ko", "thai": "th",
}  # fmt: skip
# Three words of a language may be another one's too.
_LEAST_WORDS: Final = 4

_PUNCTUATION = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Value):
    """One thing that is wrong.

    Attributes:
        kind: its name, for programs.
        count: how many show it.
        of: of how many that were looked at.
        what: what it is, in a sentence.
        advice: what to do.
    """

    kind: Kind
    count: int
    of: int
    what: str
    advice: str


class Shape(_Value):
    """How the vectors lie.

    Attributes:
        texts: how many different texts they are of.
        mean_cosine: of all pairs.
        effective_rank: in how many directions they spread: exp of the entropy of the variances along the axes (Roy and
            Vetterli 2007).
    """

    texts: int
    mean_cosine: float
    effective_rank: float


@dataclass(frozen=True)
class Chart:
    """A user's memories as they are examined.

    Attributes:
        memories: all that are alive, in the order of writing.
        sample: places of some, evenly spread, whose vectors are looked at.
        vectors: of the sample, `(n, dimensions)`, unit length: of the first part of each text.
    """

    memories: Sequence[Memory]
    sample: Sequence[int]
    vectors: NDArray[np.float32]

    @property
    def sampled(self) -> list[Memory]:
        """The memories of the sample."""
        return [self.memories[place] for place in self.sample]


# --- The vectors ---


def shape(chart: Chart) -> Shape | None:
    """How the vectors lie; copies count once. None where there are too few to say."""
    texts = [_folded(memory.text) for memory in chart.sampled]
    firsts = sorted({text: place for place, text in reversed(list(enumerate(texts)))}.values())
    if len(firsts) < _FEW_VECTORS:
        return None
    vectors = chart.vectors[firsts].astype(np.float64)
    number, mean = len(vectors), vectors.mean(axis=0)
    mean_cosine = float((number * number * mean @ mean - number) / (number * (number - 1)))
    variances = np.linalg.svd(vectors - mean, compute_uv=False) ** 2
    shares = variances / max(float(variances.sum()), np.finfo(np.float64).tiny)
    shares = shares[shares > 0]
    return Shape(
        texts=number,
        mean_cosine=mean_cosine,
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
    )


def collapsed(found: Shape | None, *, dimensions: int) -> Finding | None:
    """Whether all texts look alike to the embedder."""
    if found is None:
        return None
    least = _LEAST_RANK * min(found.texts, dimensions)
    if found.mean_cosine < _COLLAPSED and found.effective_rank >= least:
        return None
    return Finding(
        kind="collapsed",
        count=found.texts,
        of=found.texts,
        what=f"To the embedder all texts look alike: two different ones have a cosine of {found.mean_cosine:.2f} on "
        f"average, and they spread in {found.effective_rank:.0f} directions of {dimensions}.",
        advice="Use a model that was trained to embed sentences: a language model as it is, or one with the wrong "
        "pooling, does this. Change it with `memlayer reembed`.",
    )


def near_copies(chart: Chart, *, knows_all_languages: bool) -> Finding | None:
    """Texts that say the same in other words; not those that differ in a number."""
    memories = chart.sampled
    if len(memories) < _FEW:
        return None
    texts = [_folded(memory.text) for memory in memories]
    numbers = [tuple(_DIGITS.findall(text)) for text in texts]
    kinds = {text: place for place, text in enumerate(texts)}
    codes = {own: place for place, own in enumerate(numbers)}
    text_codes = np.array([kinds[text] for text in texts])
    number_codes = np.array([codes[own] for own in numbers])
    least = np.array(
        [ALIKE if knows_all_languages or not is_unspaced(memory.text) else ALIKE_UNKNOWN for memory in memories]
    )
    alike = chart.vectors @ chart.vectors.T > np.maximum(least[:, None], least[None, :])
    alike &= (text_codes[:, None] != text_codes[None, :]) & (number_codes[:, None] == number_codes[None, :])
    count = int(alike.any(axis=1).sum())
    if count < max(_FEW, _NEAR_COPIES * len(memories)):
        return None
    return Finding(
        kind="near_duplicates",
        count=count,
        of=len(memories),
        what=f"{_of(count, len(memories))} say nearly the same as another one.",
        advice="They make room for others in a recall, so that nothing is lost but places. If a tool or a template "
        "writes them, remember what changes and not the rest.",
    )


# --- The texts ---


def copies(chart: Chart) -> Finding | None:
    """Texts that are there again, whatever their case, spaces and punctuation."""
    kinds = Counter(_folded(memory.text) for memory in chart.memories)
    total, count = len(chart.memories), len(chart.memories) - len(kinds)
    if count < max(_FEW / 2, _COPIES * total):
        return None
    most = max(kinds.values())
    return Finding(
        kind="duplicates",
        count=count,
        of=total,
        what=f"{_of(count, total)} are copies of an earlier one; the most frequent text is there {most} times.",
        advice="Copies are recalled once, with a count. If an import ran several times, give the turns your own ids "
        "(`id=`): remembering one again then changes nothing.",
    )


def few_words(chart: Chart) -> Finding | None:
    """Turns that say nothing by themselves."""
    count = sum(count_words(_said(memory)) <= _FEW_WORDS for memory in chart.memories)
    total = len(chart.memories)
    if total < _FEW or count < _SHORT * total:
        return None
    return Finding(
        kind="few_words",
        count=count,
        of=total,
        what=f"{_of(count, total)} have no word, or two at most.",
        advice="Such a turn is found by what stands beside it alone: remember whole turns, in their sessions, and not "
        "pieces of them.",
    )


def strange_languages(chart: Chart, *, languages: Collection[str] | None, model: str) -> Finding | None:
    """Texts in a language that the embedder does not know."""
    if languages is None:
        return None
    told = [
        written_language(said)
        for memory in chart.memories
        if count_words(said := _said(memory)) >= _LEAST_WORDS or is_unspaced(said)
    ]
    strange = Counter(name for name in told if name != UNKNOWN and _CODES.get(name) not in languages)
    count, total = sum(strange.values()), len(told)
    if count < max(3, _STRANGE * total):
        return None
    names = ", ".join(name.capitalize() for name, _ in strange.most_common(3))
    return Finding(
        kind="language",
        count=count,
        of=total,
        what=f"{_of(count, total)} are in a language that {model} does not know ({names}).",
        advice="They are found by their words alone. Move to a model of many languages with `memlayer reembed`.",
    )


def one_source(chart: Chart) -> Finding | None:
    """One source that writes most of the memory, and is not the user."""
    total = len(chart.memories)
    if total < _FEW:
        return None
    source, count = Counter(memory.source for memory in chart.memories).most_common(1)[0]
    most = {"tool": _MOST, "document": _MOST, "assistant": _MOST_ASSISTANT}.get(source, 1.0)
    if count <= most * total:
        return None
    return Finding(
        kind="one_source",
        count=count,
        of=total,
        what=f"{_of(count, total)} come from one source ({source}), and stand in the way of what the user said.",
        advice="Recall from the others with `sources=[...]`, or keep what is no conversation in another user's memory.",
    )


# --- What stands beside a turn ---


def no_sessions(chart: Chart) -> Finding | None:
    """Turns that belong to no conversation."""
    total = len(chart.memories)
    count = sum(memory.session is None for memory in chart.memories)
    if total < _FEW or count <= _MOST * total:
        return None
    return Finding(
        kind="no_sessions",
        count=count,
        of=total,
        what=f"{_of(count, total)} have no session, so that little of what stood beside them can help to find them.",
        advice="Pass `session=` when you remember: a short turn is found by the turns around it.",
    )


def no_speakers(chart: Chart) -> Finding | None:
    """Nothing that says who spoke."""
    total = len(chart.memories)
    alone = {memory.role for memory in chart.memories}
    if total < _FEW or len(alone) > 1 or any(memory.speaker for memory in chart.memories):
        return None
    return Finding(
        kind="no_speakers",
        count=total,
        of=total,
        what=f"All {total} memories have the role {next(iter(alone))} and no speaker: nothing says who spoke.",
        advice="Pass `role=`, and `speaker=` where several people speak: a question names whom it is about.",
    )


def one_time(chart: Chart) -> Finding | None:
    """Turns that were all said at one moment, which they were not."""
    total = len(chart.memories)
    if total < 2 * _FEW:
        return None
    count = Counter(memory.at for memory in chart.memories).most_common(1)[0][1]
    if count <= _MOST * total:
        return None
    return Finding(
        kind="one_time",
        count=count,
        of=total,
        what=f"{_of(count, total)} have the very same time, so that no question about a time can be answered.",
        advice="Pass `at=` when you remember what was said earlier.",
    )


# --- The embedder ---


def role_prompts(identity: EmbedderIdentity, *, alike: bool) -> Finding | None:
    """Prompts that stand in the wrong role, or are missing.

    Args:
        identity: of the embedder.
        alike: whether a text has the same vector as a question and as a document.
    """
    document, query = identity.document_role, identity.query_role
    swapped = (_QUERY.search(document) and not _DOCUMENT.search(document)) or (
        _DOCUMENT.search(query) and not _QUERY.search(query)
    )
    if swapped:
        return Finding(
            kind="swapped_roles",
            count=1,
            of=1,
            what=f"The embedder puts {document!r} before what is remembered and {query!r} before a question: the roles "
            "are swapped.",
            advice="Set up the embedder with the prompts that the model's card names for each role, then "
            "`memlayer reembed`.",
        )
    if alike and _WITH_ROLES.search(identity.model):
        return Finding(
            kind="no_roles",
            count=1,
            of=1,
            what=f"{identity.model} was trained with different prompts for questions and documents, and gets none: a "
            "text has the same vector in both roles.",
            advice="Set up the embedder with the prompts that the model's card names, then `memlayer reembed`.",
        )
    return None


def uncalibrated(identity: EmbedderIdentity, *, floor: float, total: int) -> Finding | None:
    """An embedder whose scores nobody has looked at."""
    if floor > 0:
        return None
    return Finding(
        kind="uncalibrated",
        count=total,
        of=total,
        what=f"Nobody has calibrated {identity.model}: its default floor is 0, so that every question finds something.",
        advice="Make its numbers with `memlayer calibrate`, or pass `min_score=`.",
    )


# --- Their parts ---


def _of(count: int, total: int) -> str:
    return f"{count} of {total} memories ({count / total:.0%})"


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _PUNCTUATION.sub("", folded) or folded


def _said(memory: Memory) -> str:
    """The text without the speaker's name before it."""
    return memory.text.removeprefix(f"{memory.speaker}: ") if memory.speaker else memory.text
