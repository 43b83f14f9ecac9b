"""Static vectors: how they are distilled, kept, checked and used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import memlayer
from memlayer import MemoryStore, RawKey
from memlayer.cli.app import app
from memlayer.embedders import Embedder, MiniLM, SplittingEmbedder, distilling, resolve, static
from memlayer.embedders.static import StaticEmbedder
from memlayer.errors import (
    EmbedderError,
    EmbedderMismatchError,
    InvalidInputError,
    MissingExtraError,
    ReadOnlyStoreError,
    WeightsUnavailableError,
)

ROOT = Path(memlayer.__file__).parents[1]
KEY = RawKey(bytes(range(32)))
TEXTS = [
    "I'm allergic to peanuts",
    "what can't I eat?",
    "¿Qué no puedo comer? Señorita ÅNGSTRÖM",
    "花生过敏，我不能吃。",
    "昨日、東京タワーに行きました。",
    "вчера я ездил в Москву",
    "a long one about a walk by the sea " * 60,
    "def f(x):\n\treturn x ** 2  # 1e-4, A-1093/b",
]
WORDS = [
    *("the", "a", "of", "to", "i", "you", "and", "peanuts", "allergic", "sea", "walk", "train", "nine"),
    *("red", "blue", "cat", "dog", "##s", "##ing", "##er", ".", ",", "?"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The recipe's vectors, really distilled from all-MiniLM-L6-v2: half a minute on two quiet processors."""
    folder = tmp_path_factory.mktemp("made") / "static"
    distilling.distil(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT model of two layers and 16 dimensions with random weights."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(7)
    bert = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    )
    bert.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is loaded yet in this process."""
    monkeypatch.setattr(static, "_loaded", {})


@pytest.fixture
def cache(fresh, made, monkeypatch):
    """The folder in this test's own cache, and how often it was made; making copies what was made before."""
    times = []

    def distil(out):
        times.append(out)
        shutil.copytree(made, out)

    monkeypatch.setattr(distilling, "distil", distil)
    folder = static._own_folder()
    assert not folder.exists()
    return folder, times


def python(code, *arguments, **environment):
    """Run the code in a fresh interpreter, and give back what it printed."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child


def altered(folder, copy, name, change):
    """A copy of a folder of vectors in which one file is another."""
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    return copy


# Identity and imports


def test_the_recipes_identity_is_pinned():
    """The identity of "static" never changes by accident, and is known without a file."""
    assert resolve("static").identity.to_json().decode() == (
        '{"dimensions":256,"document_role":"","model":"memlayer-static-1-256/sentence-transformers/all-MiniLM-L6-v2",'
        '"normalised":true,"query_role":"",'
        '"weights":"sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}'
    )


def test_a_folder_made_elsewhere_has_the_recipes_identity(made):
    """What `memlayer distil-embedder` makes of the default model opens the stores of "static"."""
    assert StaticEmbedder(made).identity == StaticEmbedder().identity


def test_both_protocols():
    """It is an Embedder that says where to cut."""
    assert isinstance(StaticEmbedder(), Embedder)
    assert isinstance(StaticEmbedder(), SplittingEmbedder)


def test_repr_shows_no_path(tmp_path):
    """The repr does not show a path, which holds a user's name."""
    assert repr(StaticEmbedder(tmp_path)) == "<StaticEmbedder from a folder>"
    assert repr(StaticEmbedder()) == "<StaticEmbedder memlayer-static-1-256>"


def test_using_vectors_imports_no_model_library(made):
    """From the import to vectors neither torch nor model2vec is imported, and nothing is printed."""
    child = python(
        """
        import sys
        from memlayer.embedders.static import StaticEmbedder
        StaticEmbedder().identity
        light = sorted({"numpy", "tokenizers"} & sys.modules.keys())
        embedder = StaticEmbedder(sys.argv[1])
        embedder.embed_documents(["one", "two"])
        embedder.embed_query("three")
        heavy = {"torch", "transformers", "sentence_transformers", "model2vec", "onnxruntime"}
        print(light, sorted(heavy & sys.modules.keys()))
        """,
        made,
    )
    assert child.stdout.strip() == "[] []"
    assert child.stderr == ""


def test_a_folders_identity_is_the_digest_of_its_files(tiny, tmp_path):
    """Another byte in any of the files is another identity; a copy elsewhere is the same one."""
    distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    identity = StaticEmbedder(tmp_path / "one").identity
    assert identity.dimensions == 8
    assert StaticEmbedder(tmp_path / "two").identity == identity
    changed = [
        altered(tmp_path / "one", tmp_path / "config", "config.json", lambda old: old + b"\n"),
        altered(tmp_path / "one", tmp_path / "tokenizer", "tokenizer.json", lambda old: old + b"\n"),
        altered(tmp_path / "one", tmp_path / "table", "model.safetensors", lambda old: old[:-1] + b"\0"),
    ]
    digests = {identity.digest(), *(StaticEmbedder(folder).identity.digest() for folder in changed)}
    assert len(digests) == 4


def test_files_that_changed_after_the_identity_are_refused(fresh, tiny, tmp_path):
    """A store is opened with an identity; other vectors that come under it later are not taken."""
    distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    embedder = StaticEmbedder(tmp_path / "one")
    assert embedder.identity.dimensions == 8
    shutil.rmtree(tmp_path / "one")
    distilling.distil(tmp_path / "one", model=tiny, dimensions=6)
    with pytest.raises(WeightsUnavailableError, match="the identity was taken from"):
        embedder.embed_query("peanuts")


# Vectors


def test_vectors_are_those_of_model2vec(made):
    """model2vec loads the folder and gives the same vectors, to the precision of its float16 sums."""
    from model2vec import StaticModel

    expected = StaticModel.from_pretrained(made, max_length=None).encode(TEXTS)
    np.testing.assert_allclose(StaticEmbedder(made).embed_documents(TEXTS), expected, atol=2e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_a_folder_that_model2vec_wrote_is_read(fresh, tiny, tmp_path, kind):
    """A table with fewer rows than pieces, with weights beside it, as model2vec saves them, is read in every type."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    random = np.random.default_rng(7)
    pieces = len(WORDS) + 7
    StaticModel(
        (random.normal(size=(9, 6)) * 40).astype(kind),
        Tokenizer.from_file(str(tiny / "tokenizer.json")),
        weights=random.uniform(0.1, 1, pieces).astype(np.float32),
        token_mapping=random.integers(0, 9, pieces),
        config={"model_type": "model2vec"},
        normalize=True,
    ).save_pretrained(tmp_path / "theirs")
    embedder = resolve(str(tmp_path / "theirs"))
    assert isinstance(embedder, StaticEmbedder)
    assert embedder.identity.dimensions == 6
    texts = ["the cat and the dog", "I walk to the blue sea.", "peanuts, zebra", "cats walking"]
    expected = StaticModel.from_pretrained(tmp_path / "theirs").encode(texts)
    np.testing.assert_allclose(embedder.embed_documents(texts), expected, atol=1e-3)


def test_vectors_have_the_promised_form(made):
    """Documents come as (n, 256) and a query as (256,), float32, C-contiguous, writable and of length 1."""
    texts = [*TEXTS, "", " ", "\0", "[SEP]", "😀", "[unused5]"]
    documents, query = StaticEmbedder(made).embed_documents(texts), StaticEmbedder(made).embed_query("")
    assert documents.shape == (len(texts), 256)
    assert query.shape == (256,)
    for vectors in (documents, query):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        assert vectors.flags.writeable
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_a_query_has_the_vector_of_the_same_document(made):
    """There is one role, and a text's vector does not depend on its neighbours."""
    embedder = StaticEmbedder(made)
    for text, vector in zip(TEXTS, embedder.embed_documents(TEXTS), strict=True):
        np.testing.assert_array_equal(embedder.embed_query(text), vector)


def test_what_has_no_known_piece_is_near_to_nothing(made):
    """A text without a known piece gets one vector, far from every text; it is a copy, not the shared one."""
    embedder = StaticEmbedder(made)
    vector = embedder.embed_query("")
    np.testing.assert_array_equal(vector, embedder.embed_query("[SEP]"))
    assert np.abs(embedder.embed_documents(TEXTS) @ vector).max() < 0.2
    vector[:] = 0
    assert embedder.embed_query("").any()


def test_meaning_is_measured(made):
    """A question is nearer to the memory that answers it than to another one."""
    embedder = StaticEmbedder(made)
    query = embedder.embed_query("which foods am I allergic to?")
    answer, other = embedder.embed_documents(["Peanuts give me a rash", "My train leaves at nine"]) @ query
    assert answer > other + 0.1


def test_a_long_text_is_cut_between_sentences(made):
    """The parts put together are the text, and end after sentences."""
    text = "Yesterday we talked about the peanut allergy of my sister at some length. " * 100
    parts = StaticEmbedder(made).split(text)
    assert len(parts) > 4
    assert "".join(parts) == text
    assert all(part.endswith("length. ") for part in parts)


def test_no_texts_give_no_rows():
    """An empty list gives (0, 256) and loads nothing."""
    assert StaticEmbedder().embed_documents([]).shape == (0, 256)


def test_wrong_input_is_refused(made):
    """One text in place of a list, None, and a lone surrogate are refused as such."""
    embedder = StaticEmbedder(made)
    with pytest.raises(InvalidInputError, match="got one text"):
        embedder.embed_documents("peanuts")
    calls: list[Any] = [embedder.embed_query, embedder.split, lambda text: embedder.embed_documents([text])]
    for call in calls:
        with pytest.raises(InvalidInputError, match="must be a str, not NoneType"):
            call(None)
        with pytest.raises(EmbedderError):
            call("\ud800")


# The folder in the cache


def test_they_are_made_on_first_use(cache, caplog):
    """The first text makes the folder, for the owner alone and with a word in the log; later ones find it."""
    folder, times = cache
    with caplog.at_level(logging.WARNING, "memlayer"):
        StaticEmbedder().embed_query("peanuts")
    assert "made from sentence-transformers/all-MiniLM-L6-v2 now, once" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == sorted(distilling.FILES)
    if os.name == "posix":
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    static._loaded.clear()
    StaticEmbedder().embed_query("peanuts")
    assert len(times) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda old: old[:100_000] + bytes([old[100_000] ^ 1]) + old[100_001:]),
        ("model.safetensors", lambda old: old[:1000]),
        ("tokenizer.json", lambda old: old.replace(b'"lowercase":true', b'"lowercase":false')),
        ("tokenizer.json", lambda old: b""),
        ("config.json", lambda old: b"{}"),
        ("config.json", lambda old: b"[1"),
    ],
)
def test_a_damaged_folder_is_made_anew(cache, made, caplog, name, change):
    """A flipped bit, a file cut short or another one is noticed at the next load, and the folder is made again."""
    folder, times = cache
    expected = StaticEmbedder(made).embed_query("peanuts")
    folder.parent.mkdir(parents=True)
    altered(made, folder, name, change)
    static._loaded.clear()
    np.testing.assert_array_equal(StaticEmbedder().embed_query("peanuts"), expected)
    assert len(times) == 1
    assert "made anew" in caplog.text
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_with_a_file_missing_is_made_anew(cache, made):
    """What a cleaner of caches left half is made again."""
    folder, times = cache
    shutil.copytree(made, folder)
    (folder / "tokenizer.json").unlink()
    StaticEmbedder().embed_query("peanuts")
    assert len(times) == 1


def test_other_vectors_under_the_recipes_name_are_refused(fresh, made, tmp_path):
    """Files whose digests are in order, and which are not what the recipe makes, are not taken for it."""
    from safetensors.numpy import load, save

    files = {name: (made / name).read_bytes() for name in distilling.FILES}
    table = load(files["model.safetensors"])["embeddings"]
    files["model.safetensors"] = save({"embeddings": np.roll(table, 1, axis=1)})
    config = json.loads(files["config.json"])
    config["memlayer"]["sha256"]["model.safetensors"] = hashlib.sha256(files["model.safetensors"]).hexdigest()
    files["config.json"] = json.dumps(config).encode()
    (tmp_path / "forged").mkdir()
    for name, content in files.items():
        (tmp_path / "forged" / name).write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match="not the vectors that the recipe makes"):
        StaticEmbedder(tmp_path / "forged").embed_query("peanuts")


def test_without_the_model_the_error_says_what_to_do(fresh, monkeypatch):
    """Without sentence-transformers the error has both ways out: the install line, and a folder from elsewhere."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(WeightsUnavailableError, match=r"memlayer-sdk\[local\].*memlayer distil-embedder --out FOLDER"):
        StaticEmbedder().embed_query("peanuts")
    assert not list(static._own_folder().parent.iterdir())


def test_a_cache_that_cannot_be_written_is_named(fresh, monkeypatch):
    """If the cache's folder cannot be written, that is what the error says."""

    def distil(out):
        raise PermissionError(13, "no", str(out))

    monkeypatch.setattr(distilling, "distil", distil)
    with pytest.raises(ReadOnlyStoreError):
        StaticEmbedder().embed_query("peanuts")


def test_two_processes_make_them_at_once(made, home):
    """Of processes that make the folder at the same time one wins, all embed alike, and nothing is left over."""
    code = """
        import shutil, sys, time
        from memlayer.embedders import distilling
        from memlayer.embedders.static import StaticEmbedder
        def distil(out):
            shutil.copytree(sys.argv[1], out)
            time.sleep(max(0, float(sys.argv[2]) - time.time()))
        distilling.distil = distil
        print(StaticEmbedder().embed_query("peanuts").sum())
    """
    together = time.time() + 3
    with ThreadPoolExecutor(3) as pool:
        children = list(pool.map(lambda _: python(code, made, together), range(3)))
    assert len({child.stdout for child in children}) == 1
    assert [path.name for path in static._own_folder().parent.iterdir()] == [static._own_folder().name]


# Other folders


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("model.safetensors", lambda old: b"\x80\x04pickle", "model.safetensors cannot be read"),
        ("tokenizer.json", lambda old: b"{}", "tokenizer.json cannot be read"),
        ("tokenizer.json", lambda old: b"\xff", "tokenizer.json cannot be read"),
        ("config.json", lambda old: b"[]", "config.json is no JSON object"),
    ],
)
def test_files_that_are_something_else_are_refused(fresh, tiny, tmp_path, name, change, fault):
    """A pickle in place of safetensors, and JSON that is none, give an error that names the file."""
    distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    del config["memlayer"]
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsUnavailableError, match=fault):
        StaticEmbedder(altered(tmp_path / "one", tmp_path / "two", name, change)).embed_query("peanuts")


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"vectors": np.ones((99, 4), np.float32)}, "no table of vectors"),
        ({"embeddings": np.ones(99, np.float32)}, "no table of vectors"),
        ({"embeddings": np.ones((3, 4), np.float32)}, "do not fit the tokenizer"),
        ({"embeddings": np.full((99, 4), np.nan, np.float32)}, "not finite"),
        ({"embeddings": np.ones((3, 4), np.float32), "mapping": np.full(99, 3)}, "do not fit the tokenizer"),
        ({"embeddings": np.ones((99, 4), np.float32), "weights": np.ones(3, np.float32)}, "do not fit the tokenizer"),
    ],
)
def test_tables_that_do_not_fit_are_refused(fresh, tiny, tmp_path, tensors, fault):
    """A table without a row for every piece, or with NaN in it, is refused at the load and not at some text."""
    from safetensors.numpy import save_file

    distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").write_text('{"model_type": "model2vec"}')
    with pytest.raises(WeightsUnavailableError, match=fault):
        StaticEmbedder(tmp_path / "one").embed_query("peanuts")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """Nothing is made at a place that the caller named."""
    with pytest.raises(WeightsUnavailableError, match="cannot be read"):
        _ = StaticEmbedder(tmp_path / "nowhere").identity
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("missing", ["tokenizers", "safetensors"])
def test_a_missing_extra_names_the_install_line(fresh, made, monkeypatch, missing):
    """Without one of its libraries the first text gives MissingExtraError with the exact line to type."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[static\]"') as caught:
        StaticEmbedder(made).embed_query("hello")
    assert caught.value.evidence["extra"] == "static"


# Stores


def test_a_store_remembers_and_recalls_with_them(made, tmp_path):
    """A store that was written with a folder opens with a copy of it."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=str(made)) as store:
        store.user("alice").remember("Peanuts give me a rash")
        store.user("alice").remember("😀")
    copy = shutil.copytree(made, tmp_path / "copy")
    with MemoryStore.open(path, keys=KEY, embedder=StaticEmbedder(copy)) as store:
        hits = store.user("alice").recall("which foods am I allergic to?", min_score=0)
        assert hits[0].text == "Peanuts give me a rash"


def test_a_store_of_another_embedder_refuses_them(made, tmp_path):
    """A store that was written with the model itself does not open with what was distilled from it."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=MiniLM()) as store:
        store.user("alice").remember("Peanuts give me a rash")
    with (
        pytest.raises(EmbedderMismatchError),
        MemoryStore.open(path, keys=KEY, embedder=StaticEmbedder(made)) as store,
    ):
        store.user("alice").recall("which foods am I allergic to?")


# Distilling


def test_distilling_twice_gives_the_same_files(tiny, tmp_path):
    """The same model on the same machine gives the same bytes."""
    for name in ("one", "two"):
        distilling.distil(tmp_path / name, model=tiny, dimensions=8)
    for name in distilling.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_table_is_what_the_recipe_says(tiny, tmp_path):
    """What the text's frequent pieces would weigh is taken away, no text holds has no vector, and SIF makes small."""
    from safetensors.numpy import load_file

    distilling.distil(tmp_path / "one", model=tiny, dimensions=16)
    table = load_file(tmp_path / "one" / "model.safetensors")["embeddings"].astype(np.float64)
    # [UNK] and the other special pieces, and [unused].
    assert not table[:7].any()
    share = 1 / (1.0 + np.arange(1, len(WORDS) + 1))
    share /= share.sum()
    plain = table[7:] / (1e-4 / (1e-4 + share))[:, None]
    np.testing.assert_allclose(share @ plain, 0, atol=1e-2)
    np.testing.assert_allclose((plain.T @ plain) - np.diag(np.diag(plain.T @ plain)), 0, atol=0.1)
    assert (np.diff(np.diag(plain.T @ plain)) < 1e-2).all()


def test_progress_is_told(tiny, tmp_path):
    """The last report says that all pieces are done."""
    reports = []
    distilling.distil(tmp_path / "one", model=tiny, dimensions=8, progress=lambda *report: reports.append(report))
    assert reports[-1] == (len(WORDS) + 7, len(WORDS) + 7)


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tiny, tmp_path):
    """The new folder may be there if it is empty; what is in a folder is never overwritten."""
    (tmp_path / "one").mkdir()
    distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    before = (tmp_path / "one" / "model.safetensors").read_bytes()
    with pytest.raises(InvalidInputError, match="choose a new folder"):
        distilling.distil(tmp_path / "one", model=tiny, dimensions=6)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dimensions", [0, 17])
def test_dimensions_out_of_range_are_refused(tiny, tmp_path, dimensions):
    """A model of 16 dimensions gives 1 to 16, and a refusal leaves nothing behind."""
    with pytest.raises(InvalidInputError, match="dimensions"):
        distilling.distil(tmp_path / "one", model=tiny, dimensions=dimensions)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused(tmp_path):
    """A folder without a tokenizer is no model."""
    with pytest.raises(InvalidInputError, match=r"no tokenizer\.json"):
        distilling.distil(tmp_path / "one", model=tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tiny, tmp_path):
    """A model that needs Python files of its own is refused."""
    copy = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.OwnModel"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(EmbedderError):
        distilling.distil(tmp_path / "one", model=copy, dimensions=8)
    assert not (tmp_path / "one").exists()


def test_distilling_without_its_extra_names_the_install_line(monkeypatch, tiny, tmp_path):
    """Without sentence-transformers distilling gives MissingExtraError with the exact line to type."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[local\]"'):
        distilling.distil(tmp_path / "one", model=tiny)


def test_a_folder_that_cannot_be_written_leaves_nothing(tiny, tmp_path, monkeypatch):
    """If the last step fails, the error names the folder, and no draft stays beside it."""

    def fail(*args):
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ReadOnlyStoreError):
        distilling.distil(tmp_path / "one", model=tiny, dimensions=8)
    assert not list(tmp_path.iterdir())


def test_the_command_makes_a_folder(tiny, tmp_path):
    """`memlayer distil-embedder` makes the folder and says what is in it."""
    arguments = ["distil-embedder", "--model", tiny, "--out", tmp_path / "one", "--dimensions", 8, "--json"]
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["folder"] == str(tmp_path / "one")
    assert told["embedder"] == StaticEmbedder(tmp_path / "one").identity.model_dump()
    assert told["bytes"] == sum((tmp_path / "one" / name).stat().st_size for name in distilling.FILES)
    arguments[4] = tmp_path / "two"
    shown = CliRunner().invoke(app, [str(each) for each in arguments[:-1]])
    assert shown.stdout.startswith(f"Made {tmp_path / 'two'}, ")
    assert CliRunner().invoke(app, [str(each) for each in arguments[:-1]]).exit_code == 2


# Threads and forks


def test_threads_get_the_vectors_they_would_get_alone(made):
    """Eight threads that embed at once get the same vectors as one after the other."""
    embedder = StaticEmbedder(made)
    texts = [f"what is number {number}? " * (1 + number % 20) for number in range(200)]
    alone = [embedder.embed_query(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(embedder.embed_query, texts))
    np.testing.assert_array_equal(alone, together)


def test_racing_threads_make_them_once(cache):
    """Threads that embed their first text at the same moment make and load one table between them."""
    _, times = cache
    together = threading.Barrier(4)

    def first(_):
        together.wait()
        return StaticEmbedder()._load([])

    with ThreadPoolExecutor(4) as pool:
        assert len({id(loaded) for loaded in pool.map(first, range(4))}) == 1
    assert len(times) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_embeds(made):
    """A child forked while another thread loads embeds as its parent did, and ends."""
    child = python(
        """
        import os, signal, sys, threading
        from memlayer.embedders import static
        from memlayer.embedders.static import StaticEmbedder

        before = StaticEmbedder(sys.argv[1]).embed_query("peanuts")
        loading = threading.Thread(target=static._loading.acquire)  # ends, and never lets go
        loading.start()
        loading.join()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            static._loaded.clear()
            sys.exit(0 if (StaticEmbedder(sys.argv[1]).embed_query("peanuts") == before).all() else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        made,
    )
    assert child.stdout.strip() == "0"
