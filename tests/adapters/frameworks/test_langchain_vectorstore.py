"""The VectorStore over one user's documents: the public conformance suite, and what it does not ask."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from langchain_tests.integration_tests.vectorstores import EMBEDDING_SIZE

from memlayer import MemoryStore, RawKey
from memlayer.adapters.langchain_vectorstore import MemlayerVectorStore
from memlayer.errors import ConflictError, InvalidFilterError, InvalidInputError
from memlayer.testing import HashingEmbedder


class TestConformance(VectorStoreIntegrationTests):
    """LangChain's own suite, with the embeddings that it brings along."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        embedder = HashingEmbedder(EMBEDDING_SIZE)
        with MemoryStore.open(tmp_path / "suite.db", keys=RawKey(bytes(32)), embedder=embedder) as store:
            yield MemlayerVectorStore(store.user("alice"), self.get_embeddings())
            assert embedder.texts == 0, "the given embeddings are the only ones"


class TestConformanceOwnEmbedder(VectorStoreIntegrationTests):
    """The same suite, with the memory's own embedder."""

    @pytest.fixture
    def vectorstore(self, alice):
        return MemlayerVectorStore(alice)


@pytest.fixture
def documents(alice):
    return MemlayerVectorStore(alice)


def test_conversation_is_no_document(alice, documents):
    """What was said in a conversation is not found, not given, not deleted and not overwritten as a document."""
    said = alice.remember("the cat sat on the mat", id="said")
    chosen = alice.remember("the cat sat on the roof")
    documents.add_texts(["the cat sat in the manual"], ids=["manual"])
    assert [found.id for found in documents.similarity_search("the cat sat", k=10)] == ["manual"]
    assert documents.get_by_ids(["said", "manual", chosen.id]) == [
        Document(page_content="the cat sat in the manual", id="manual", metadata={})
    ]
    for taken in ("said", chosen.id):
        with pytest.raises(ConflictError):
            documents.add_texts(["other"], ids=[taken])
    documents.delete(["said", chosen.id])
    documents.delete(None)
    assert {memory.id for memory in alice.history()} == {said.id, chosen.id}


def test_others_have_others(store, documents):
    """Documents of one user are no documents of another."""
    documents.add_texts(["alpha"], ids=["1"])
    other = MemlayerVectorStore(store.user("bob"))
    assert other.similarity_search("alpha") == []
    assert other.get_by_ids(["1"]) == []
    other.delete(["1"])
    assert len(documents.get_by_ids(["1"])) == 1


def test_add_is_all_or_nothing(alice, documents):
    """Where one text of several cannot be stored, none is."""
    with pytest.raises(InvalidInputError):
        documents.add_texts(["good", ""])
    with pytest.raises(InvalidInputError):
        documents.add_texts(["one", "two"], ids=["1"])
    assert len(alice) == 0
    assert documents.add_texts([]) == []


def test_filter_and_score(documents):
    """`filter` is memlayer's own language; scores fall, and a threshold cuts them off."""
    documents.add_texts(["red apple", "green apple", "blue whale"], [{"n": 1}, {"n": 2}, {"n": 3}], ids=["1", "2", "3"])
    assert [one.id for one in documents.similarity_search("apple", filter={"n": {"$gte": 2}}, k=1)] == ["2"]
    found = documents.similarity_search_with_score("red apple", k=3)
    scores = [score for _, score in found]
    assert [one.id for one, _ in found] == ["1", "2", "3"]
    assert scores == sorted(scores, reverse=True)
    retriever = documents.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.3, "k": 3}
    )
    assert [one.id for one in retriever.invoke("red apple")] == ["1", "2"]
    with pytest.raises(InvalidFilterError):
        documents.similarity_search("apple", filter={"n": {"$regex": ".*"}})


def test_by_vector(documents, embedder):
    """A vector asks as the text does that it was made of, and embeds nothing."""
    documents.add_texts(["red apple", "blue whale"])
    vector = [float(number) for number in embedder.embed_query("whale")]
    before = embedder.texts
    assert documents.similarity_search_by_vector(vector, k=1)[0].page_content == "blue whale"
    assert asyncio.run(documents.asimilarity_search_by_vector(vector, k=1))[0].page_content == "blue whale"
    assert embedder.texts == before


def test_from_texts(store, alice):
    """`from_texts` and `from_documents`, sync and async, need a user's memory and add to it."""
    MemlayerVectorStore.from_texts(["one"], memory=alice, ids=["1"])
    asyncio.run(MemlayerVectorStore.afrom_texts(["two"], None, memory=alice, ids=["2"]))
    made = MemlayerVectorStore.from_documents([Document(page_content="three", id="3")], None, memory=alice)
    assert sorted(one.page_content for one in made.get_by_ids(["1", "2", "3"])) == ["one", "three", "two"]
    with pytest.raises(InvalidInputError):
        MemlayerVectorStore.from_texts(["one"])
    with pytest.raises(InvalidInputError):
        MemlayerVectorStore(store)


def test_session(alice):
    """Documents of a session are found through that session only, and deleting all of them leaves the others."""
    one, other = (MemlayerVectorStore(alice, session=name) for name in ("one", "other"))
    one.add_texts(["apple one"], ids=["1"])
    other.add_texts(["apple other"], ids=["2"])
    assert [found.id for found in one.similarity_search("apple")] == ["1"]
    one.delete()
    assert [found.id for found in other.similarity_search("apple")] == ["2"]
    assert len(alice) == 1
