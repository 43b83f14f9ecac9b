"""Images of turns: found by their picture or their caption, sealed, read one by one, gone with their memory."""

from __future__ import annotations

import hashlib
import io
import logging
import sqlite3
import struct
import tracemalloc
import zlib
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from memlayer import (
    ExportDamagedError,
    InvalidInputError,
    LimitExceededError,
    MemoryStore,
    NotFoundError,
    StoreDamagedError,
    Turn,
    export,
    reembedding,
)
from memlayer.embedders.sentence_transformers import SentenceTransformerEmbedder
from memlayer.errors import ConflictError
from memlayer.export import write_export
from memlayer.items import ItemKind
from memlayer.prompt import render
from memlayer.records import MAX_IMAGE_BYTES
from memlayer.sealer import OpenedRecord
from memlayer.testing import HashingEmbedder
from tests import tiny_models
from tests.conftest import KEY

PHRASE = "correct horse battery staple"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def picture(colour=(255, 0, 0), *, kind="PNG", size=16) -> bytes:
    """A picture of one colour with a dot, as a file."""
    image = Image.new("RGB", (size, size), colour)
    image.putpixel((size // 2, size // 3), (0, 0, 0))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a kilobyte that says it has ten billion pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


RED, GREEN, BLUE = picture((255, 0, 0)), picture((0, 160, 40)), picture((20, 40, 255))
# Begins as a PNG does, and is none.
TORN = RED[:20] + b"\0" * 40


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A folder with a CLIP pair that knows nothing."""
    return tiny_models.clip(tmp_path_factory.mktemp("clip") / "pair", seed=3)


@pytest.fixture
def clip(pair):
    """Texts and pictures in one space of 24 dimensions."""
    return SentenceTransformerEmbedder(pair, name="tests/tiny-clip")


@pytest.fixture
def gallery(tmp_path, clip):
    """A store whose embedder reads images."""
    with MemoryStore.open(tmp_path / "gallery.db", keys=KEY, embedder=clip) as opened:
        yield opened


def by_picture(user, clip, image, **options):
    """What is found with a picture in place of a question."""
    return user.recall(clip.embed_images([image])[0], min_score=0, **options)


def rows(path, kind=ItemKind.IMAGE):
    """The sealed items of a closed store, one kind."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT sealed FROM items WHERE kind = ? ORDER BY rowid", (kind,)).fetchall()
    return [bytes(sealed) for (sealed,) in found]


# --- Found ---


def test_a_turn_is_found_by_its_picture(gallery, clip):
    """Of three with one caption each comes first for its own picture, with a cosine of 1."""
    alice = gallery.user("alice")
    known = {image: alice.remember("my photo", image=image).id for image in (RED, GREEN, BLUE)}
    for image, own_id in known.items():
        best = by_picture(alice, clip, image)[0]
        assert best.id == own_id
        assert best.score == pytest.approx(1, abs=1e-5)


def test_a_question_is_compared_with_the_picture_too(gallery, clip):
    """The score of a memory is that of its better side: its caption or its picture."""
    alice = gallery.user("alice")
    bare = alice.remember("qq")
    seen = alice.remember("qq", image=RED)
    query, both = clip.embed_query("peanuts"), [clip.embed_documents(["qq"])[0], clip.embed_images([RED])[0]]
    cosines = [float(query @ vector) for vector in both]
    scores = {hit.id: hit.score for hit in alice.recall(query, min_score=0)}
    assert scores[bare.id] == pytest.approx(max(cosines[0], 0), abs=1e-5)
    assert scores[seen.id] == pytest.approx(max(*cosines, 0), abs=1e-5)


def test_a_question_in_words_finds_a_picture(gallery, clip, monkeypatch):
    """The meaning leg takes a turn's picture where that fits better than a caption that has nothing to do with it."""
    alice = gallery.user("alice")
    for number in range(6):
        alice.remember(f"word {number}")
    seen = alice.remember("zz", image=BLUE)
    monkeypatch.setattr(SentenceTransformerEmbedder, "embed_query", lambda self, _: self.embed_images([BLUE])[0])
    hits = alice.recall("the sea?", min_score=0, without=["lexical", "length", "context", "session", "diversity"])
    assert hits[0].id == seen.id


def test_a_long_caption_takes_nothing_from_the_picture(gallery, clip, monkeypatch):
    """What the best of many parts is better by is luck; the picture is one part, whatever the caption's length."""
    alice = gallery.user("alice")
    short = alice.remember("zz", image=BLUE)
    long = alice.remember("the train to Berlin leaves at nine " * 60, image=BLUE)
    monkeypatch.setattr(SentenceTransformerEmbedder, "embed_query", lambda self, _: self.embed_images([BLUE])[0])
    off = ["lexical", "length", "context", "session", "diversity", "duplicates"]
    parts = {hit.id: hit.parts["vector"] for hit in alice.recall("the sea?", min_score=0, explain=True, without=off)}
    assert parts[short.id] == pytest.approx(parts[long.id], abs=1e-5)


def test_without_an_image_role_the_caption_is_found(alice, embedder):
    """The file is kept and given back; nothing but the caption is embedded."""
    memory = alice.remember("the beach at Cascais", image=RED)
    alice.remember("something else")
    assert alice.recall("Cascais beach", min_score=0)[0].id == memory.id
    assert alice.image(memory.id) == RED
    assert embedder.texts == 3


def test_two_pictures_with_one_caption_are_two(alice):
    """Equal texts are one hit with a count only where their pictures are equal too."""
    for image in (RED, RED, GREEN, None):
        alice.remember("my photo", image=image)
    counts = {hit.image_sha256: hit.count for hit in alice.recall("photo", min_score=0)}
    assert list(counts.values()).count(1) == 2
    assert counts[hashlib.sha256(RED).hexdigest()] == 2
    assert len(counts) == 3


def test_given_vectors_are_all_that_a_turn_has(gallery, clip):
    """Whoever brings vectors says what they are of: no model is loaded for the image."""
    alice = gallery.user("alice")
    other = clip.embed_documents(["caption"])
    alice.remember_many([Turn(text="caption", image=RED)], embeddings=other)
    assert by_picture(alice, clip, RED)[0].score < 0.99


# --- Kept ---


def test_what_a_memory_says_of_its_image(alice):
    """A digest, in get, history and recall; nothing for one without; the file for whoever asks."""
    seen = alice.remember("my cat", image=RED, id="cat")
    bare = alice.remember("no cat")
    digest = hashlib.sha256(RED).hexdigest()
    for memory in (seen, alice.get("cat"), alice.history()[0], alice.recall("my cat", min_score=0)[0]):
        assert (memory.image_sha256, memory.has_image) == (digest, True)
    assert (bare.image_sha256, bare.has_image, alice.image(bare.id)) == (None, False, None)
    assert "image" not in repr(seen)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats(gallery, kind):
    """PNG, JPEG, WebP and GIF files come back byte by byte and are seen."""
    alice = gallery.user("alice")
    image = picture(kind=kind)
    assert alice.image(alice.remember("a file", image=image).id) == image


def test_an_image_survives_the_process(tmp_path, embedder):
    """What is read after opening the store anew is the file that was remembered."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        own_id = store.user("alice").remember("my cat", image=RED).id
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        assert store.user("alice").image(own_id) == RED
        assert store.user("alice").get(own_id).has_image
        store.verify()


def test_the_same_id_with_the_same_image_changes_nothing(alice, embedder):
    """Another image is other content: a conflict, or a replacement."""
    first = alice.remember("my cat", id="cat", at=AT, image=RED)
    assert alice.remember("my cat", id="cat", at=AT, image=RED) == first
    for other in (GREEN, None):
        with pytest.raises(ConflictError):
            alice.remember("my cat", id="cat", at=AT, image=other)
    assert alice.remember("my cat", id="cat", at=AT, image=GREEN, replace=True).image_sha256 != first.image_sha256
    assert alice.image("cat") == GREEN
    alice.remember("my cat", id="cat", at=AT, replace=True)
    assert alice.image("cat") is None
    alice.remember("my cat", id="cat", at=AT, image=BLUE, replace=True)
    assert alice.image("cat") == BLUE


def test_a_new_text_keeps_the_image_and_its_vector(gallery, clip):
    """`update` changes the caption; the picture is found as before."""
    alice = gallery.user("alice")
    memory = alice.remember("my cat", image=RED)
    assert alice.update(memory.id, text="our cat, asleep").has_image
    assert alice.update(memory.id, metadata={"n": 1}).has_image
    assert alice.image(memory.id) == RED
    best = by_picture(alice, clip, RED)[0]
    assert (best.text, best.score) == ("our cat, asleep", pytest.approx(1, abs=1e-5))


def test_the_block_says_that_there_is_an_image(alice):
    """A record says so, and nothing of the file; one without an image has the record that it always had."""
    bare, seen = alice.remember("no cat", at=AT), alice.remember("my cat", at=AT, image=RED)
    assert '"image": true, "text": "my cat"' in render([seen], max_tokens=800)
    assert "image" not in render([bare], max_tokens=800)
    assert seen.image_sha256 not in render([seen], max_tokens=800)


# --- Gone, and nobody else's ---


def test_a_forgotten_image_is_gone_from_the_files(tmp_path, embedder):
    """No 32 bytes of its seal are left in any file of the store; the other user's stays."""
    path = tmp_path / "memories.db"
    noise = np.random.default_rng(0).bytes(300_000)
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        own_id = store.user("alice").remember("my cat", image=RED + noise).id
        other = store.user("bob").remember("my dog", image=GREEN).id
    sealed = max(rows(path), key=len)
    assert sealed[1000:1032] in path.read_bytes()
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        assert store.user("alice").forget(own_id) == 1
        with pytest.raises(NotFoundError):
            store.user("alice").image(own_id)
        assert store.user("bob").image(other) == GREEN
        store.verify()
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    # A page of the file holds 8 kB of it, so of each page a piece is looked for.
    assert not [start for start in range(0, len(sealed) - 32, 4_000) if sealed[start : start + 32] in left]
    assert len(rows(path)) == 1


def test_replacing_and_erasing_drop_the_row(tmp_path, embedder):
    """One image, one row, in the transaction of its memory."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        alice = store.user("alice")
        alice.remember("my cat", id="cat", image=RED)
        alice.remember("my dog", id="dog", session="s", image=BLUE)
        alice.remember("my cat", id="cat", image=GREEN, replace=True)
    assert len(rows(path)) == 2
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        store.user("alice").forget(session="s")
        store.user("alice").remember("my cat, as words", id="cat", replace=True)
        store.verify()
    assert rows(path) == []
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        store.user("alice").remember("my cat", image=RED)
        store.user("alice").erase()
        store.verify()
    assert rows(path) == []


def test_nobody_elses_image_is_read(store, alice):
    """An id of another user's is one that never was, even the same own id."""
    alice.remember("my cat", id="cat", image=RED)
    hidden = alice.remember("my other cat", image=GREEN).id
    bob = store.user("bob")
    for own_id in ("cat", hidden):
        with pytest.raises(NotFoundError):
            bob.image(own_id)
    bob.remember("my cat", id="cat", image=BLUE)
    assert (alice.image("cat"), bob.image("cat")) == (RED, BLUE)


@pytest.mark.parametrize(
    "meddling",
    [
        "UPDATE items SET sealed = zeroblob(length(sealed))",
        "UPDATE items SET sealed = substr(sealed, 1, length(sealed) - 1)",
        "UPDATE items SET sealed = (SELECT sealed FROM items WHERE rowid = 2) WHERE rowid = 1",
        "UPDATE items SET sealed = (SELECT sealed FROM old WHERE old.item_id = items.item_id)",
    ],
    ids=["zeros", "cut short", "another one's", "an older one"],
)
def test_an_image_that_was_changed_is_damage(tmp_path, embedder, meddling):
    """Seen by whoever reads it and by `verify`; the memories beside it can still be read."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        for name in ("cat", "dog"):
            store.user("alice").remember(name, id=name, image=RED)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ATTACH ? AS aside", (str(tmp_path / "aside.db"),))
        connection.execute("CREATE TABLE aside.old AS SELECT * FROM items")
        connection.commit()
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        store.user("alice").remember("cat", id="cat", image=GREEN, replace=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ATTACH ? AS aside", (str(tmp_path / "aside.db"),))
        connection.execute(meddling)
        connection.commit()
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        assert store.user("alice").get("cat").text == "cat"
        with pytest.raises(StoreDamagedError):
            store.user("alice").image("cat")
        with pytest.raises(StoreDamagedError):
            store.verify()
        with pytest.raises(StoreDamagedError):
            store.user("alice").export(tmp_path / "alice.memlayer", passphrase=PHRASE)


@pytest.mark.parametrize(
    "meddling",
    [
        "DELETE FROM items WHERE rowid = 1",
        "INSERT INTO items SELECT uref, kind, zeroblob(16), dek_epoch, version, sealed FROM items WHERE rowid = 1",
        "UPDATE items SET version = version + 1 WHERE rowid = 1",
        "UPDATE items SET kind = 2 WHERE rowid = 1",
        "UPDATE items SET item_id = zeroblob(16) WHERE rowid = 1",
    ],
    ids=["removed", "added", "of another version", "of another kind", "under another id"],
)
def test_rows_of_images_are_counted(tmp_path, embedder, meddling):
    """A row that is gone, added or moved is seen before anything of the user's is read, without a look at the files."""
    path = tmp_path / "memories.db"
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        for name in ("cat", "dog"):
            store.user("alice").remember(name, id=name, image=RED)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(meddling)
        connection.commit()
    with (
        MemoryStore.open(path, keys=KEY, embedder=embedder) as store,
        pytest.raises(StoreDamagedError),
    ):
        store.user("alice").get("dog")


# --- Limits ---


@pytest.mark.parametrize("bad", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"RIFF0000WAVE", "text", bytearray(RED), 5])
def test_what_is_no_image_is_refused(alice, bad):
    """By its first bytes, whatever the embedder; nothing is written, and the error holds none of it."""
    with pytest.raises(InvalidInputError) as caught:
        alice.remember("my cat", image=bad)
    assert "hello" not in str(caught.value)
    assert len(alice) == 0


def test_a_file_that_is_too_large_is_refused(alice):
    """4,000,000 bytes are the most, and that much is taken."""
    most = RED.ljust(MAX_IMAGE_BYTES, b"\0")
    with pytest.raises(LimitExceededError):
        alice.remember("my cat", image=most + b"\0")
    assert alice.image(alice.remember("my cat", image=most).id) == most


def test_an_image_needs_its_caption(gallery):
    """A memory without words would say nothing in a prompt, and nothing after a change of the embedder."""
    with pytest.raises(InvalidInputError, match="empty"):
        gallery.user("alice").remember("", image=RED)


@pytest.mark.parametrize(
    ("image", "error"), [(TORN, InvalidInputError), (bomb(), LimitExceededError)], ids=["torn", "bomb"]
)
def test_a_file_that_cannot_be_opened_is_refused_where_it_is_seen(gallery, image, error):
    """By an embedder that reads images: told from the head, before a pixel is opened; nothing is written."""
    alice = gallery.user("alice")
    alice.remember("there already", image=RED)
    with pytest.raises(error):
        alice.remember_many([Turn(text="good", image=GREEN), Turn(text="bad", image=image)])
    assert len(alice) == 1


def test_images_are_not_items_for_programs(alice):
    """The way to them is the memory; the list of items would be one of names without contents."""
    with pytest.raises(InvalidInputError, match="image"):
        alice.items(ItemKind.IMAGE)


def test_images_are_not_held_in_ram(tmp_path, embedder):
    """Forty images of a megabyte: a recall in a store just opened holds, and ever held, less than a few of them."""
    path = tmp_path / "memories.db"
    big = RED.ljust(1_000_000, b"\0")
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        ids = [store.user("alice").remember(f"photo {number}", image=big).id for number in range(40)]
    with MemoryStore.open(path, keys=KEY, embedder=embedder) as store:
        alice = store.user("alice")
        tracemalloc.start()
        try:
            assert len(alice.recall("photo", k=40, min_score=0)) > 0
            assert alice.image(ids[7]) == big
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8_000_000
        assert store._open_parts().residents.nbytes < 1_000_000


# --- Export and import ---


def exported(user, folder):
    path = folder / "alice.memlayer"
    user.export(path, passphrase=PHRASE)
    return path


def test_an_export_carries_images(tmp_path, gallery, clip):
    """Into a store of the same embedder with files and vectors, without a model at work; again, it changes nothing."""
    alice = gallery.user("alice")
    alice.remember("no picture", id="bare")
    alice.remember("my cat", id="cat", image=RED)
    alice.remember("my dog", id="dog", image=GREEN)
    path = exported(alice, tmp_path)
    assert RED not in path.read_bytes()
    with MemoryStore.open(tmp_path / "other.db", keys=KEY, embedder=clip) as store:
        bob = store.user("bob")
        assert bob.import_(path, passphrase=PHRASE).added == 3
        assert bob.import_(path, passphrase=PHRASE).kept == 3
        assert [bob.image(own_id) for own_id in ("bare", "cat", "dog")] == [None, RED, GREEN]
        best = by_picture(bob, clip, GREEN)[0]
        assert (best.id, best.score) == ("dog", pytest.approx(1, abs=1e-5))
        store.verify()


def test_an_import_into_another_embedder(tmp_path, store, clip, monkeypatch):
    """One that reads images embeds them, in portions that are small whatever the images are; one that does not, not."""
    monkeypatch.setattr(export, "_PORTION_IMAGE_BYTES", 100)
    alice = store.user("alice")
    for own_id, image in (("cat", RED), ("dog", GREEN), ("torn", TORN), ("bare", None)):
        alice.remember(f"my {own_id}", id=own_id, image=image)
    path = exported(alice, tmp_path)
    with MemoryStore.open(tmp_path / "seeing.db", keys=KEY, embedder=clip) as seeing:
        bob = seeing.user("bob")
        assert bob.import_(path, passphrase=PHRASE).added == 4
        assert by_picture(bob, clip, GREEN)[0].id == "dog"
        assert bob.image("torn") == TORN
        back = tmp_path / "bob.memlayer"
        bob.export(back, passphrase=PHRASE)
    with MemoryStore.open(tmp_path / "blind.db", keys=KEY, embedder=HashingEmbedder()) as blind:
        carol = blind.user("carol")
        assert carol.import_(back, passphrase=PHRASE).added == 4
        assert carol.image("cat") == RED
        assert carol.recall("dog", min_score=0)[0].id == "dog"
        blind.verify()


@pytest.mark.parametrize("forged", [None, GREEN, b"no image", RED.ljust(MAX_IMAGE_BYTES + 1, b"\0")])
def test_a_forged_image_is_damage(tmp_path, store, alice, forged):
    """Missing, another one, none at all, or too large: nothing is imported."""
    memory = alice.remember("my cat", image=RED)
    if forged is not None and forged != GREEN:
        memory = memory.model_copy(update={"image_sha256": hashlib.sha256(forged).hexdigest()})
    record = OpenedRecord(
        memory_id=bytes(16), seq=0, element=0, memory=memory, own_id=None, vectors=np.eye(1, 64, dtype=np.float32)
    )
    path = tmp_path / "forged.memlayer"
    write_export(path, [record], identity=store.embedder, passphrase=PHRASE, image=lambda _: forged)
    with pytest.raises(ExportDamagedError):
        store.user("bob").import_(path, passphrase=PHRASE)
    assert len(store.user("bob")) == 0


# --- Another embedder ---


def test_reembedding_to_an_embedder_that_reads_images_and_back(tmp_path, store, alice, clip, monkeypatch, caplog):
    """There pictures are found, in batches that are small whatever the images are; back, their vectors are gone, and
    the files are not. A file that cannot be opened is found by its caption, and the log says so."""
    monkeypatch.setattr(reembedding, "_IMAGE_BYTES_AT_ONCE", 100)
    for own_id, image in (("cat", RED), ("dog", GREEN), ("torn", TORN), ("bomb", bomb()), ("bare", None)):
        alice.remember(f"my {own_id}", id=own_id, image=image)
    with caplog.at_level(logging.WARNING, logger="memlayer"):
        assert store.reembed(clip).memories == 5
    assert "cannot be opened; they are found by their captions" in caplog.text
    for own_id, image in (("cat", RED), ("dog", GREEN)):
        best = by_picture(alice, clip, image)[0]
        assert (best.id, best.score) == (own_id, pytest.approx(1, abs=1e-5))
    store.verify()
    assert store.reembed(HashingEmbedder()).memories == 5
    assert alice.recall("dog", min_score=0)[0].id == "dog"
    assert [alice.image(own_id) for own_id in ("cat", "torn", "bare")] == [RED, TORN, None]
    with store._open_parts().database.read() as connection:
        user = store._open_parts().vault.unlock(connection, "alice")
        assert [record.pictures for record in store._open_parts().vault.stream(connection, user)] == [0] * 5
    store.verify()


def test_vectors_of_images_that_a_move_has_saved_are_taken_up(tmp_path, store, alice, clip, monkeypatch):
    """A move that was cut off after it saved goes on with what is there, the pictures' vectors too."""
    alice.remember("my cat", id="cat", image=RED)
    alice.remember("my dog", id="dog", image=GREEN)
    monkeypatch.setattr(reembedding, "SAVE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(reembedding.Reembedding, "_swap", _killed)
    with pytest.raises(KeyboardInterrupt):
        store.reembed(clip)
    monkeypatch.undo()
    monkeypatch.setattr(SentenceTransformerEmbedder, "embed_images", _killed)
    assert store.reembed(clip).embedded == 0
    monkeypatch.undo()
    assert by_picture(alice, clip, GREEN)[0].id == "dog"
    store.verify()


def _killed(*_, **__):
    raise KeyboardInterrupt
