"""The LangGraph store in one user's memory: as `InMemoryStore` over generated operations, and what is its own."""

from __future__ import annotations

import asyncio
import threading
from itertools import count

import langgraph.store.memory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from memlayer import MemoryStore, RawKey, aio
from memlayer.adapters.langgraph import MemlayerStore
from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.items import ItemKind
from memlayer.testing import HashingEmbedder

# ---------------------------------------------------------------- as InMemoryStore

# Few of each, so that operations meet; stranger ones are in `test_any_text`.
LABELS = st.sampled_from(["a", "b", "ab", "*", 'a", "b'])
NAMESPACES = st.sampled_from([(), ("a",), ("a", "b"), ("ab",), ("*", "a"), ("b", "a", "b"), ('a", "b',)])
PREFIXES = st.one_of(st.just(()), st.lists(LABELS, max_size=3).map(tuple))
KEYS = st.sampled_from(["a", "k", "ключ", "' OR 1=1 --"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, "1", "x", "é", "\x00"]))
VALUES = st.dictionaries(
    st.sampled_from(["n", "t", "o"]),
    st.one_of(
        SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from(["x", "y"]), SCALARS, max_size=2)
    ),
    max_size=3,
)
COMPARISONS = st.dictionaries(
    st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), st.integers(-3, 3), min_size=1, max_size=2
)
CONDITIONS = st.one_of(
    SCALARS,
    COMPARISONS,
    st.lists(st.one_of(SCALARS, COMPARISONS), max_size=2),
    st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(SCALARS, COMPARISONS), max_size=2),
)
FILTERS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"n": COMPARISONS}),
    st.dictionaries(st.sampled_from(["n", "t", "o", "$.n"]), CONDITIONS, max_size=2),
)
PAGES = {"limit": st.one_of(st.just(9), st.integers(-1, 5)), "offset": st.one_of(st.just(0), st.integers(-1, 4))}
MATCHES = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), PREFIXES)
PUTS = st.tuples(NAMESPACES, KEYS, VALUES | st.fixed_dictionaries({"n": st.integers(-3, 3)})).map(lambda op: PutOp(*op))
SEARCHES = st.builds(SearchOp, PREFIXES, filter=FILTERS, query=st.sampled_from([None, "", "x"]), **PAGES)
LISTS = st.builds(
    ListNamespacesOp,
    match_conditions=st.one_of(st.none(), st.lists(MATCHES, max_size=2).map(tuple)),
    max_depth=st.one_of(st.none(), st.integers(0, 3)),
    **PAGES,
)
DELETES = st.tuples(NAMESPACES, KEYS).map(lambda place: PutOp(*place, None))
OPS = st.one_of(PUTS, SEARCHES, LISTS, st.builds(GetOp, NAMESPACES, KEYS), DELETES)
BATCHES = st.tuples(
    st.lists(PUTS, min_size=3, max_size=8),  # Something is there,
    st.lists(OPS, max_size=6),
    st.lists(OPS, max_size=6),
    st.lists(st.one_of(SEARCHES, LISTS), min_size=3, max_size=6),  # and is looked at.
)

_numbers = count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store for all examples; each takes a new user."""
    path = tmp_path_factory.mktemp("shared") / "memories.db"
    with MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=HashingEmbedder()) as store:
        yield store


@pytest.fixture
def oracle(monkeypatch):
    """Makes `InMemoryStore`s without the two things that are meant to differ: comparing what is no number raises there,
    and a namespace stays when it was only asked for, or when its last item has gone."""
    compare = langgraph.store.memory._apply_operator

    def lenient(*args):
        try:
            return compare(*args)
        except (TypeError, ValueError):
            return False

    monkeypatch.setattr(langgraph.store.memory, "_apply_operator", lenient)

    class Oracle(InMemoryStore):
        def batch(self, ops):
            try:
                return super().batch(ops)
            finally:
                for namespace in [namespace for namespace, items in self._data.items() if not items]:
                    del self._data[namespace]

    return Oracle


def told(result):
    """A result without times."""
    if isinstance(result, Item):
        return (result.namespace, result.key, result.value, getattr(result, "score", None))
    return [told(one) for one in result] if isinstance(result, list) else result


@pytest.mark.parametrize("is_async", [False, True])
def test_as_in_memory_store(shared, oracle, is_async):
    """Over generated batches each result is that of `InMemoryStore`, in the same order, sync and async."""

    @settings(max_examples=300)
    @given(BATCHES)
    def same(batches):
        store, expected = MemlayerStore(shared.user(f"user {next(_numbers)}")), oracle()

        async def later():
            return [await store.abatch(ops) for ops in batches]

        results = asyncio.run(later()) if is_async else [store.batch(ops) for ops in batches]
        for ops, result in zip(batches, results, strict=True):
            # One operation of the oracle's own that only reads may make a namespace that the next one would list.
            assert [told(one) for one in result] == [told(one) for one in _expected(expected, ops)]

    same()


def _expected(oracle, ops):
    """What the oracle says: its reads one by one, then its writes."""
    results = [None if isinstance(op, PutOp) else oracle.batch([op])[0] for op in ops]
    oracle.batch([op for op in ops if isinstance(op, PutOp)])
    return results


WORDS = st.lists(st.sampled_from(["red", "green", "apple", "whale"]), min_size=1, max_size=4).map(" ".join)


def embed(texts):
    return HashingEmbedder().embed_documents(texts).tolist()


@pytest.mark.parametrize("is_async", [False, True])
def test_semantic_search_as_in_memory_store(shared, oracle, is_async):
    """A query ranks as `InMemoryStore` ranks: by the best vector of an item, those without one at the end."""
    index = {"dims": 64, "embed": embed, "fields": ["text", "more[*]"]}

    @given(
        st.dictionaries(
            st.tuples(NAMESPACES, KEYS), st.tuples(WORDS, st.sampled_from([None, False, ["title"]])), max_size=8
        ),
        st.lists(st.tuples(NAMESPACES, WORDS, st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=4),
    )
    def same(items, searches):
        store, expected = MemlayerStore(shared.user(f"user {next(_numbers)}"), index=index), oracle(index=index)
        for number, ((namespace, key), (words, fields)) in enumerate(items.items()):
            # Each text once: given one text twice, the oracle raises or takes the vectors of others.
            value = {
                "text": f"{words} {number}",
                "more": [f"stone {number}", f"{words} more {number}"],
                "title": f"x{number}",
            }
            for one in (store, expected):
                one.batch([PutOp(namespace, key, value, fields)])
        for prefix, query, limit, offset in searches:
            search = SearchOp(prefix, query=query, limit=limit, offset=offset)
            page = asyncio.run(store.abatch([search]))[0] if is_async else store.batch([search])[0]
            # The oracle shows items without a vector on every page again, so its first page is cut.
            whole = expected.batch([SearchOp(prefix, query=query, limit=100)])[0]
            scores = {(item.namespace, item.key): item.score for item in whole}
            for item, other in zip(page, whole[offset : offset + limit], strict=True):
                assert item.value["text"] is not None
                for score in (other.score, scores[item.namespace, item.key]):
                    assert (item.score is None) is (score is None)
                    assert item.score is None or item.score == pytest.approx(score, abs=1e-5)
            assert len({(item.namespace, item.key) for item in page}) == len(page)

    same()


# ---------------------------------------------------------------- what upstream's own stores are tested for


@pytest.fixture
def items(alice):
    return MemlayerStore(alice)


def test_namespace_boundaries(items):
    """("a",) is no prefix of ("ab",), a label is never split or joined, and a key is no label."""
    for namespace in (("a",), ("ab",), ("a", "b"), ("a,b",), ('a", "b',)):
        items.put(namespace, "k", {"in": list(namespace)})
    items.batch([PutOp((), "a", {"in": []})])
    assert [item.namespace for item in items.search(("a",))] == [("a",), ("a", "b")]
    assert [item.namespace for item in items.search(("a", "b"))] == [("a", "b")]
    assert items.get(("a",), "b") is None
    assert items.get(("a", "k"), "") is None
    assert items.list_namespaces(prefix=("a",)) == [("a",), ("a", "b")]
    assert len(items.search(())) == 6


def test_wildcards(items):
    """In a condition "*" stands for one label; the wildcards of SQL are labels like others."""
    for namespace in (("a", "x", "v1"), ("a", "y", "v2"), ("b", "x", "v1"), ("a%", "x"), ("a_", "x"), ("aa", "x")):
        items.put(namespace, "k", {})
    assert items.list_namespaces(prefix=("a", "*", "v1")) == [("a", "x", "v1")]
    assert items.list_namespaces(suffix=("x", "*")) == [("a", "x", "v1"), ("b", "x", "v1")]
    assert items.list_namespaces(prefix=("a%",)) == [("a%", "x")]
    assert items.list_namespaces(prefix=("a_",)) == [("a_", "x")]
    assert items.list_namespaces(prefix=("*",), max_depth=1) == [("a",), ("a%",), ("a_",), ("aa",), ("b",)]
    assert items.list_namespaces(prefix=("a",), suffix=("v2",)) == [("a", "y", "v2")]


def test_any_text(items):
    """Other scripts, quotes, control characters and lone surrogates come back as they went in."""
    for number, text in enumerate(["日本語", "🙂", "'; DROP TABLE item; --", '"]}', "\x00\n", "\ud800"]):
        items.put((f"n{number}", "ß"), text, {text: text})
        assert items.get((f"n{number}", "ß"), text).value == {text: text}
        assert items.search((), filter={text: text}, limit=9)[0].key == text
    assert len(items.search((), limit=9)) == 6


def test_filters_are_no_code(items):
    """A field's or an operator's name that would be SQL or a path is a name, or is refused."""
    items.put(("a",), "1", {"secret": 1, "x": {"y": 1}})
    for field in ("' OR '1'='1", "$.secret", "x.y", "secret') OR 1=1 --", "__class__"):
        assert items.search((), filter={field: 1}) == []
    for operator in ("$where", "$gt OR 1=1", "$regex", "$"):
        with pytest.raises(ValueError, match="filter"):
            items.search((), filter={"secret": {operator: 1}})
    with pytest.raises(ValueError, match="condition"):
        items.batch([ListNamespacesOp((MatchCondition("infix", ("a",)),))])


@pytest.mark.parametrize(
    ("operator", "met"),
    [("$eq", [2]), ("$ne", [1, 3]), ("$gt", [3]), ("$gte", [2, 3]), ("$lt", [1]), ("$lte", [1, 2])],
)
def test_operators(items, operator, met):
    """Each operator on less, the same and more, on a field and inside of one."""
    for number in (1, 2, 3):
        items.put(("a",), str(number), {"n": number, "in": {"n": number}})
    assert [item.value["n"] for item in items.search((), filter={"n": {operator: 2}})] == met
    assert [item.value["n"] for item in items.search((), filter={"in": {"n": {operator: 2}}})] == met


def test_comparing(items):
    """Numbers compare as numbers, texts as texts, and what cannot be compared does not meet the filter."""
    for key, value in {"1": 9, "2": 10.5, "3": "10", "4": "2026-01-01", "5": None, "6": [1], "7": 10**400}.items():
        items.put(("a",), key, {"n": value})
    items.put(("a",), "8", {})
    assert [item.key for item in items.search((), filter={"n": {"$gte": 10}})] == ["2", "3"]
    assert [item.key for item in items.search((), filter={"n": {"$lt": "2027-01-01", "$gt": "2025"}})] == ["4"]
    assert [item.key for item in items.search((), filter={"n": {"$ne": 9}})] == ["2", "3", "4", "5", "6", "7", "8"]


def test_labels_are_checked_by_langgraph(items):
    """The labels that LangGraph refuses are refused here too."""
    for namespace in ((), ("",), ("a.b",), ("langgraph",), (1,)):
        with pytest.raises(InvalidNamespaceError):
            items.put(namespace, "k", {})


def test_times(items):
    """An item keeps the time when it was made, and has that of its last write; they are UTC."""
    items.put(("a",), "k", {"n": 1})
    first = items.get(("a",), "k")
    items.put(("a",), "k", {"n": 2})
    second = items.get(("a",), "k")
    assert first.created_at == first.updated_at == second.created_at < second.updated_at
    assert first.created_at.utcoffset().total_seconds() == 0
    items.delete(("a",), "k")
    assert items.get(("a",), "k") is None


def test_values_are_copies(items):
    """What was put in can be changed, and what came out too, and the store stays as it was."""
    value = {"list": [1]}
    items.put(("a",), "k", value)
    value["list"].append(2)
    items.get(("a",), "k").value["list"].append(3)
    assert items.get(("a",), "k").value == {"list": [1]}


# ---------------------------------------------------------------- what is its own


def test_all_or_nothing(items):
    """Where one value of a batch cannot be stored, none is, and the batch before it stays."""
    items.put(("a",), "0", {"n": 0})
    loop = {}
    loop["self"] = loop
    for wrong, error in (
        ({"x": object()}, InvalidInputError),
        (loop, InvalidInputError),
        ({"x": "y" * 5_000_000}, LimitExceededError),
    ):
        with pytest.raises(error):
            items.batch([PutOp(("a",), "1", {}), PutOp(("a",), "2", wrong)])
    with pytest.raises(InvalidInputError):
        items.batch([PutOp(("a",), "1", {}), "no operation"])
    assert [item.key for item in items.search(())] == ["0"]


def test_no_time_to_live(items):
    """What is meant to go after a while is refused rather than kept for ever."""
    with pytest.raises(NotImplementedError):
        items.put(("a",), "k", {}, ttl=1)
    with pytest.raises(InvalidInputError):
        items.batch([PutOp(("a",), "k", {}, ttl=1.0)])
    assert items.search(()) == []


def test_a_user_has_its_own(store, items, alice):
    """Another user's store has nothing of it; recall does not find items; erasing the user erases them."""
    items.put(("a",), "k", {"text": "red apple"})
    other = MemlayerStore(aio.AsyncUserMemory(store.user("bob")))
    assert other.search(()) == other.list_namespaces() == []
    assert len(alice) == len(alice.recall("red apple")) == 0
    alice.remember("blue whale")
    assert len(items.search(())) == 1
    alice.erase()
    assert items.search(()) == []
    for memory in (None, store, "alice"):
        with pytest.raises(InvalidInputError):
            MemlayerStore(memory)


def test_other_names_are_left_alone(items, alice):
    """Items of the same kind whose names are not of this store are neither shown nor changed."""
    with alice.items(ItemKind.FRAMEWORK).change() as named:
        named["other"] = b"\x00"
    items.put(("a",), "k", {})
    assert len(items.search(())) == 1
    assert items.list_namespaces() == [("a",)]
    assert alice.items(ItemKind.FRAMEWORK).read()["other"] == b"\x00"


def test_reopened(tmp_path):
    """Items, their order, their times and their vectors are there after the store was closed; nothing is in clear."""
    index = {"dims": 64, "embed": embed}
    path = tmp_path / "memories.db"

    def opened():
        return MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=HashingEmbedder())

    with opened() as store:
        items = MemlayerStore(store.user("alice"), index=index)
        for number in (3, 1, 2):
            items.put(("plain label",), f"plain key {number}", {"plain field": f"plain value {number}"})
        before = items.search((), query="plain value 2")
    with opened() as store:
        items = MemlayerStore(store.user("alice"), index=index)
        assert [item.key[-1] for item in items.search(())] == ["3", "1", "2"]
        assert items.search((), query="plain value 2") == before
        assert items.search((), query="plain value 2")[0].score == before[0].score
    assert not [file for file in tmp_path.iterdir() if b"plain" in file.read_bytes()]


def test_another_index(alice):
    """Vectors of another length than the query's, left by another index, are as good as none."""
    MemlayerStore(alice, index={"dims": 64, "embed": embed}).put(("a",), "old", {"text": "red apple"})
    items = MemlayerStore(alice, index={"dims": 2, "embed": lambda texts: [[1.0, 0.0]] * len(texts)})
    items.put(("a",), "new", {"text": "blue whale"})
    assert [(item.key, item.score) for item in items.search((), query="apple")] == [("new", 1.0), ("old", None)]
    assert [item.score for item in MemlayerStore(alice).search((), query="apple")] == [None, None]


def test_each_text_is_embedded_once(alice):
    """A batch embeds all its texts in one call, each once; async embedders are awaited."""
    calls = []

    async def embedder(texts):
        calls.append(list(texts))
        return embed(texts)

    items = MemlayerStore(alice, index={"dims": 64, "embed": embedder, "fields": ["text"]})
    puts = [PutOp(("a",), str(number), {"text": text}) for number, text in enumerate(["red", "blue", "red"])]
    asyncio.run(items.abatch([*puts, PutOp(("a",), "0", None), PutOp(("a",), "9", {"text": "grey"}, False)]))
    assert calls == [["red", "blue"]]
    found = asyncio.run(items.asearch((), query="red"))
    assert [(item.key, item.score) for item in found] == [("2", pytest.approx(1)), ("1", pytest.approx(0)), ("9", None)]


def test_writers_at_once(alice):
    """Of writes from many threads none is lost."""
    stores = [MemlayerStore(alice) for _ in range(4)]

    def write(number):
        for key in range(5):
            stores[number].put(("a", str(number)), str(key), {})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].search((), limit=100)) == 20


@pytest.mark.parametrize("is_async", [False, True])
def test_in_a_graph(items, is_async):
    """A graph that is compiled with it has it in its nodes."""

    def note(state, *, store):
        store.put(("notes",), "latest", {"text": state["text"]})
        return {"text": store.get(("notes",), "latest").value["text"] + "!"}

    async def anote(state, *, store):
        await store.aput(("notes",), "latest", {"text": state["text"]})
        return {"text": (await store.aget(("notes",), "latest")).value["text"] + "!"}

    builder = StateGraph(dict)
    builder.add_node("note", anote if is_async else note)
    builder.add_edge(START, "note")
    builder.add_edge("note", END)
    graph = builder.compile(store=items)
    result = asyncio.run(graph.ainvoke({"text": "hi"})) if is_async else graph.invoke({"text": "hi"})
    assert result == {"text": "hi!"}
    assert items.get(("notes",), "latest").value == {"text": "hi"}
