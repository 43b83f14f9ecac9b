"""The store: one file with the memories of many users, each under a key of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from memlayer import workers
from memlayer.embedders.resolve import resolve
from memlayer.errors import InvalidInputError, StoreClosedError
from memlayer.health import Breaker, Loading
from memlayer.newfile import named
from memlayer.records import valid_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from memlayer.embedders.protocol import Embedder, EmbedderIdentity
    from memlayer.memory import UserMemory
    from memlayer.opening import OpenStore
    from memlayer.reports import KeySlotInfo, ReembedReport, VerifyReport
    from memlayer.rerankers.protocol import Reranker
    from memlayer.second_stage import SecondStage
    from memlayer.sources import KeySource

__all__ = ["MemoryStore", "embedders_of", "open_to_reembed", "open_without_embedder"]

DEFAULT_CACHE_BYTES = 512 * 1024 * 1024
"""How much RAM the indexes of all users may take together."""


_CLOSING_SECONDS = 10.0


class MemoryStore:
    """An open store. Get one from `MemoryStore.open`; threads may share it.

    It is a context manager; `close` is what its end does.
    """

    def __init__(self, parts: OpenStore, *, embedder: Embedder) -> None:
        self._parts: OpenStore | None = parts
        from memlayer.ledger import Pending
        from memlayer.spaces import Spaces

        self._spaces = Spaces(embedder, vault=parts.vault)
        self._pending = Pending()
        parts.database.in_child(self._pending.forked)
        parts.database.in_child(self._spaces.queries.forked)
        self._breaker = Breaker()
        self._second_stage: SecondStage | None = None
        self._loading = Loading(getattr(embedder, "load", None))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        keys: KeySource | None = None,
        embedder: str | Path | Embedder | None = None,
        accept_rollback: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        reranker: str | Reranker | None = None,
        rerank_timeout: float = 0.5,
    ) -> MemoryStore:
        """Opens the store at `path`; where there is no file, makes a new one.

        Args:
            path: the file, or its SQLAlchemy URL (`sqlite:///memories.db`). Its folder must exist.
            keys: `Passphrase`, `KeyFile`, `RawKey` or `RecoveryKey`; None is what the environment names
                (MEMLAYER_KEY or MEMLAYER_PASSPHRASE), else a key file in the user's config folder.
            embedder: what turns texts into vectors; loaded when the first text is embedded. One of
                None: all-MiniLM-L6-v2 on this machine (extra `local`)
                "onnx": the same vectors without torch (extra `onnx`); "onnx-int8": nearly as good, in half the time
                "static": a table of word pieces in place of a model (extra `static`)
                "litellm/<provider>/<model>": a provider's model (extra `litellm`); it gets the texts
                any other name, or a folder: a model of sentence-transformers (extra `local`)
                an object with the `Embedder` protocol, such as those of `memlayer.embedders`, which take options
            accept_rollback: take a store that is older than what this machine last saw of it, as after a backup was
                restored; and make a new one where the old one is gone.
            cache_bytes: how much RAM the indexes of all users may take together.
            reranker: reads a question together with each of the first 50 hits, and puts them in a better order: a
                cross-encoder of sentence-transformers by name or folder, "litellm/<provider>/<model>", or an object
                with the `Reranker` protocol. None, the default, costs nothing.
            rerank_timeout: how many seconds a recall waits for the reranker; then the first order stands.

        Raises:
            WrongKeyError: the key does not open it; not a byte of it was changed.
            KeyUnavailableError: there is no key, or its source does not give it.
            NotAStoreError: the file is something else; it was left as it is.
            StoreDamagedError: it was altered.
            RollbackDetectedError: it is older than what this machine last saw of it.
            EmbedderMismatchError: it was written with another embedder.
            WeightsUnavailableError, EmbedderError: `embedder` names a model that is not to be had, or not to be used.
            MissingExtraError: an extra that `embedder` needs is not installed.
        """
        stage = None
        if reranker is not None:
            from memlayer.rerankers.resolve import resolve_reranker
            from memlayer.second_stage import SecondStage

            stage = SecondStage(resolve_reranker(reranker), seconds=rerank_timeout)
        store = cls._opened(
            path, keys=keys, embedder=resolve(embedder), accept_rollback=accept_rollback, cache_bytes=cache_bytes
        )
        store._second_stage = stage
        return store

    @classmethod
    def _opened(
        cls,
        path: str | os.PathLike[str],
        *,
        keys: KeySource | None,
        embedder: Embedder,
        accept_rollback: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        any_space: bool = False,
    ) -> MemoryStore:
        # Imported here: SQLAlchemy, the driver and the cryptography take half a second that `import memlayer` has not.
        from memlayer.opening import open_store

        if keys is not None and not (hasattr(keys, "secret") and hasattr(keys, "kind")):
            raise InvalidInputError(
                "keys must be a Passphrase, KeyFile, RawKey or RecoveryKey, not " + type(keys).__name__
            )
        parts = open_store(
            _file(path),
            keys=keys,
            identity=embedder.identity,
            accept_rollback=accept_rollback,
            cache_bytes=cache_bytes,
            any_space=any_space,
        )
        return cls(parts, embedder=embedder)

    def user(self, user_id: str) -> UserMemory:
        """The memory of one user, and the only way to data. Writes nothing: a user exists from the first memory on.

        Args:
            user_id: 1 to 512 bytes in UTF-8, taken exactly; whoever calls must know that it is this user.
        """
        from memlayer.memory import UserMemory

        parts = self._open_parts()
        return UserMemory(
            valid_name(user_id, name="user_id"),
            vault=parts.vault,
            database=parts.database,
            residents=parts.residents,
            spaces=self._spaces,
            pending=self._pending,
            breaker=self._breaker,
            loading=self._loading,
            second_stage=self._second_stage,
        )

    def count_users(self) -> int:
        """How many users have memories."""
        parts = self._open_parts()
        with parts.database.read() as connection:
            return parts.vault.directory.count_users(connection)

    def verify(self) -> VerifyReport:
        """Reads everything and checks it: the file's structure, every seal, every manifest, every memory.

        Raises:
            StoreDamagedError: naming the first thing that is not as it was written.
        """
        return self._open_parts().verify()

    def reembed(
        self, new: str | Path | Embedder, *, progress: bool | Callable[[int, int], None] = False
    ) -> ReembedReport:
        """Changes the store's embedder: embeds every text anew, while the store is in use.

        User by user; each is searched with the embedder that the user's vectors are of, the old one until the new
        vectors have been verified. When it is interrupted, calling it again goes on; until then this process needs both
        embedders for all users, and one that has only the old or only the new one gets `EmbedderMismatchError` for a
        recall or a new memory of the others, while get, history, forget and export work.

        Afterwards `embedder` is the new one; other processes must open the store with it.

        Args:
            new: as for `open`.
            progress: show how far it is; or a function that is told how many memories are done, and of how many.

        Raises:
            ConflictError: another process has begun a move to yet another embedder.
            EmbedderError: the embedder failed; nothing is lost, call it again.
            ReadOnlyStoreError: the file can only be read.
            StoreDamagedError: a user's memories are damaged; that user is left as they are.
        """
        from memlayer.reembedding import Reembedding, shown

        parts = self._open_parts()
        with shown(progress) as told:
            return Reembedding(
                resolve(new), vault=parts.vault, database=parts.database, spaces=self._spaces, progress=told
            ).run()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Writes a consistent copy to a new file, while the store is in use.

        The copy opens with the same keys; it holds the sealed keys of users who are erased later.
        """
        self._open_parts().backup(named(path))

    def key_slots(self) -> list[KeySlotInfo]:
        """The ways into the store."""
        return self._open_parts().key_slots()

    def add_key(self, source: KeySource) -> int:
        """Adds a way into the store; the number of its slot."""
        return self._open_parts().add_slot(source)

    def remove_key(self, slot: int) -> None:
        """Removes a way into the store. The last one cannot be removed.

        An older copy of the file still opens with it.
        """
        self._open_parts().remove_slot(slot)

    def new_recovery_key(self) -> str:
        """Adds a recovery key and returns its text. Show it once, to be written on paper: memlayer keeps no copy."""
        from memlayer.sources import RecoveryKey

        text = RecoveryKey.generate()
        self.add_key(RecoveryKey(text))
        return text

    @property
    def path(self) -> Path:
        """The file."""
        return self._open_parts().database.path

    @property
    def embedder(self) -> EmbedderIdentity:
        """The identity of the embedder that the store is written with."""
        return self._spaces.own.identity

    @property
    def read_only(self) -> bool:
        """Whether the file can only be read."""
        return self._open_parts().database.mode != "rw"

    def close(self) -> None:
        """Closes the file and frees what is in RAM; every later call raises `StoreClosedError`. May be called twice."""
        if self._parts is not None:
            # What adapters have begun to remember, and nobody waited for.
            workers.finish(self._breaker, seconds=_CLOSING_SECONDS)
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryStore({str(self._parts.database.path)!r})" if self._parts else "MemoryStore(closed)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MemoryStore holds keys and connections and cannot be pickled; open it in each process")

    def _open_parts(self) -> OpenStore:
        if self._parts is None:
            raise StoreClosedError("the store is closed; open it again")
        return self._parts


def open_to_reembed(path: str | os.PathLike[str], *, keys: KeySource | None, embedder: Embedder) -> MemoryStore:
    """The store at `path`, open with an embedder that it may never have been written with: for `reembed`, which does
    not need the old one. Until that has moved them, users can be read and exported, not searched."""
    return MemoryStore._opened(path, keys=keys, embedder=embedder, any_space=True)


def open_without_embedder(
    path: str | os.PathLike[str], *, keys: KeySource | None, accept_rollback: bool = False
) -> MemoryStore:
    """The store at `path`, whatever it was written with, for what embeds nothing: to read, export, forget, verify."""
    return MemoryStore._opened(path, keys=keys, embedder=resolve(None), accept_rollback=accept_rollback, any_space=True)


def embedders_of(store: MemoryStore) -> list[EmbedderIdentity]:
    """What the store itself says it is written with; while a move is not finished, where it goes comes first."""
    parts = store._open_parts()
    with parts.database.read() as connection:
        embedders = parts.vault.read_embedders(connection)
    return [embedders[number] for number in sorted(embedders, reverse=True)]


def _file(path: str | os.PathLike[str]) -> Path:
    """The absolute, resolved path that a path or an SQLite URL names."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise InvalidInputError(f"a store's path must be a str or a Path, not {type(path).__name__}")
    text = os.fspath(path)
    if isinstance(text, str) and "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme.partition("+")[0] != "sqlite":
            raise InvalidInputError(f"this version keeps stores in SQLite files, not in {scheme.partition('+')[0]}")
        text = rest.removeprefix("/")
    if text in ("", b"", ":memory:", b":memory:"):
        raise InvalidInputError("a store needs a file; for one that goes away, use a temporary folder")
    try:
        return named(text).resolve()
    except (OSError, RuntimeError):
        raise InvalidInputError("this path cannot be followed: a link leads to itself, or a folder is gone") from None
