"""LangChain: one user's documents as a VectorStore.

    documents = MemlayerVectorStore(alice)
    documents.add_texts(["..."], ids=["manual-1"])

A document is a memory whose source is "document". What was said in conversations is no document: it is not found here,
not given by its id, not deleted and not overwritten.

Different from other vector stores: `filter` is memlayer's filter language (`memlayer.filters`) on the metadata; the
score is 0 to 1, larger is better; there is no search by marginal relevance, since vectors do not leave the memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer import workers
from memlayer.errors import ConflictError, InvalidInputError, MissingExtraError, NotFoundError
from memlayer.records import Turn
from memlayer.wrapping import one_user

try:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import VectorStore
except ImportError as error:
    raise MissingExtraError('langchain is missing: pip install "memlayer-sdk[langchain]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from langchain_core.embeddings import Embeddings

    from memlayer.aio import AsyncUserMemory
    from memlayer.memory import UserMemory
    from memlayer.records import Memory

__all__ = ["MemlayerVectorStore"]


class MemlayerVectorStore(VectorStore):
    """One user's documents.

    Args:
        memory: of one user.
        embedding: computes the vectors in place of the memory's own embedder. It must give what that one would: vectors
            of the same model and dimensions, or the two cannot be compared.
        session: the conversation that the documents belong to, or None; only those are searched.
    """

    def __init__(
        self,
        memory: UserMemory | AsyncUserMemory,
        embedding: Embeddings | None = None,
        *,
        session: str | None = None,
    ) -> None:
        self._memory = one_user(memory)
        self._embedding = embedding
        self._session = session

    @property
    def embeddings(self) -> Embeddings | None:
        """What computes the vectors, where it is not the memory's own embedder."""
        return self._embedding

    # ---------------------------------------------------------------- write

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds documents, all of them or none; one with an id that is there is overwritten. Their ids, in order.

        Raises:
            ConflictError: an id is that of something else than a document.
        """
        turns = self._turns(texts, metadatas, ids)
        given = self._embedding
        return self._add(turns, None if given is None else given.embed_documents([turn.text for turn in turns]))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, and never on the event loop."""
        turns = self._turns(texts, metadatas, ids)
        given = self._embedding
        vectors = None if given is None else await given.aembed_documents([turn.text for turn in turns])
        return await asyncio.wrap_future(workers.submit(self._add, turns, vectors))

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Forgets the documents with these ids, where they are there; all of them where `ids` is None."""
        if ids is None:
            self._memory.forget(session=self._session, source="document")
        else:
            for document in self._found(ids):
                self._memory.forget(document.id)
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        memory: Any = None,
        session: str | None = None,
        **kwargs: Any,
    ) -> MemlayerVectorStore:
        """The documents of the user whose memory this is, with these added.

        Raises:
            InvalidInputError: `memory` is missing, or not the memory of one user.
        """
        documents = cls(memory, embedding, session=session)
        documents.add_texts(texts, metadatas, ids=ids)
        return documents

    # ---------------------------------------------------------------- read

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; those that are not there are left out."""
        return [_document(memory) for memory in self._found(ids)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The documents that fit the query, best first. `filter`: only those with this metadata."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the scores."""
        return self._search(query if self._embedding is None else self._embedding.embed_query(query), k, **kwargs)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search`, for a vector of the memory's dimensions."""
        return [document for document, _ in self._search(embedding, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search`, and never on the event loop."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, and never on the event loop."""
        asked = query if self._embedding is None else await self._embedding.aembed_query(query)
        return await asyncio.wrap_future(workers.submit(self._search, asked, k, **kwargs))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score

    # ---------------------------------------------------------------- both ways

    def _turns(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[Turn]:
        texts = list(texts)
        metadatas = [{}] * len(texts) if metadatas is None else list(metadatas)
        ids = [None] * len(texts) if ids is None else list(ids)
        if not len(texts) == len(metadatas) == len(ids):
            raise InvalidInputError("there must be as many metadatas and ids as texts")
        return [
            Turn(text=text, metadata=metadata, id=own_id, source="document", session=self._session)
            for text, metadata, own_id in zip(texts, metadatas, ids, strict=True)
        ]

    def _add(self, turns: list[Turn], vectors: list[list[float]] | None) -> list[str]:
        for turn in turns:
            if turn.id is not None and (there := self._get(turn.id)) is not None and there.source != "document":
                raise ConflictError("the id is taken by a memory that is no document")
        embeddings = None if vectors is None or not turns else np.asarray(vectors, dtype=np.float32)
        return [memory.id for memory in self._memory.remember_many(turns, embeddings=embeddings, replace=True)]

    def _search(
        self, query: str | list[float], k: int, *, filter: Mapping[str, Any] | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        hits = self._memory.recall(
            query if isinstance(query, str) else np.asarray(query, dtype=np.float32),
            k=k,
            session=self._session,
            where=filter,
            sources=["document"],
        )
        return [(_document(hit), hit.score) for hit in hits]

    def _found(self, ids: Iterable[str]) -> list[Memory]:
        memories = [self._get(own_id) for own_id in ids]
        return [memory for memory in memories if memory is not None and memory.source == "document"]

    def _get(self, id: str) -> Memory | None:
        try:
            return self._memory.get(id)
        except NotFoundError:
            return None


def _document(memory: Memory) -> Document:
    return Document(page_content=memory.text, id=memory.id, metadata=memory.metadata)
