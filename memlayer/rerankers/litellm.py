"""Rerank endpoints of providers, through LiteLLM.

    reranker = LiteLLMReranker("cohere/rerank-v3.5")     # the key is in COHERE_API_KEY

Making one asks nobody and imports no LiteLLM. How a request is made, tried again and kept out of logs:
`memlayer.litellm_calls`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from memlayer.embedders.litellm_models import mode_of
from memlayer.errors import EmbedderError, InvalidInputError
from memlayer.litellm_calls import Caller, require_litellm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LiteLLMReranker"]

# Whose scores are logits; all others state a relevance from 0 to 1.
_LOGITS: Final = frozenset({"nvidia_nim"})


class LiteLLMReranker:
    """One rerank model of one provider. Shareable by threads; cheap to make.

    Query and texts go to the provider, in clear, as with any service.

    Args:
        model: "<provider>/<model>" as LiteLLM writes it, such as "cohere/rerank-v3.5", "voyage/rerank-2.5" or
            "jina_ai/jina-reranker-v2-base-multilingual".
        scale: what the provider's scores are: "unit" for 0 to 1, "logit" for any number, put through the logistic
            function. None for what is known of the provider.
        api_base: where the provider is, as LiteLLM takes it for this provider; None for its public address.
        api_key: None for the provider's environment variable.
        options: more arguments for LiteLLM, such as `{"aws_region_name": ...}`.
        retries: how many times a request is made again after a rate limit, a server's error or a broken connection.
            Few, because somebody waits for the answer.
        timeout: seconds for one request.
        patience: seconds after the first try when it is not tried again any more.

    Raises:
        InvalidInputError: no "<provider>/<model>", or a model of another kind.
        MissingExtraError: LiteLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        scale: Literal["unit", "logit"] | None = None,
        api_base: str | None = None,
        api_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        retries: int = 1,
        timeout: float = 10.0,
        patience: float = 20.0,
    ) -> None:
        require_litellm()
        if not isinstance(model, str) or not all(model.partition("/")):
            raise InvalidInputError('model must be written as <provider>/<model>, such as "cohere/rerank-v3.5"')
        if scale not in (None, "unit", "logit"):
            raise InvalidInputError('scale must be "unit", "logit" or None')
        mode = mode_of(model)
        if mode not in (None, "rerank"):
            raise InvalidInputError(f"{model} is a model for {mode}, and not for reranking", model=model)
        self._caller = Caller(
            model,
            api_base=api_base,
            api_key=api_key,
            options=options,
            retries=retries,
            timeout=timeout,
            patience=patience,
        )
        self._logits = (scale or ("logit" if model.partition("/")[0] in _LOGITS else "unit")) == "logit"

    def __repr__(self) -> str:
        return f"<LiteLLMReranker {self.name}>"

    @property
    def name(self) -> str:
        """ "<provider>/<model>"."""
        return self._caller.model

    def rerank(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """`(n,)` float32: the relevance of each text from 0 to 1, in the order given. One request.

        Raises:
            EmbedderError: the provider refused, failed, or answered with something else; the message holds no text.
            MissingExtraError: LiteLLM cannot be imported, or lacks a library for this provider.
        """
        import numpy as np

        if isinstance(texts, str):
            raise InvalidInputError("rerank takes a sequence of texts, and got one text")
        if not len(texts):
            return np.empty(0, dtype=np.float32)
        # An empty text is refused by some; a mark says as little.
        arguments: dict[str, Any] = {"query": query, "documents": [text if text.strip() else "." for text in texts]}
        # All of them, and without the texts coming back.
        arguments |= {"top_n": len(texts), "return_documents": False}
        answer = self._caller.call("rerank", arguments, texts=len(texts))
        return self._relevances(getattr(answer, "results", None), rows=len(texts))

    def _relevances(self, results: Any, *, rows: int) -> NDArray[np.float32]:
        import numpy as np

        found: dict[int, float] = {}
        for result in results if isinstance(results, list) else []:
            number, score = _field(result, "index"), _field(result, "relevance_score")
            if isinstance(number, int) and isinstance(score, int | float):
                found[number] = float(score)
        if sorted(found) != list(range(rows)) or len(results) != rows:
            raise EmbedderError(f"{self.name} gave {len(found)} scores for {rows} texts", model=self.name)
        scores = np.array([found[number] for number in range(rows)], dtype=np.float64)
        if not np.isfinite(scores).all():
            raise EmbedderError(f"{self.name} gave a score that is NaN or infinity", model=self.name)
        if self._logits:
            scores = 1 / (1 + np.exp(-np.clip(scores, -60, 60)))
        elif scores.min() < -1.001 or scores.max() > 1.001:
            # A cosine may lie below 0, which is irrelevant enough; beyond that the scale is another one.
            raise EmbedderError(f'{self.name} gave scores beyond 0 to 1; pass scale="logit"', model=self.name)
        return np.clip(scores, 0, 1).astype(np.float32)


def _field(result: Any, name: str) -> Any:
    return result.get(name) if isinstance(result, dict) else getattr(result, name, None)
