"""How items-1.json was made: the rows of the table `items` in format 1, by the second implementation in make.py, which
imports nothing of memlayer.

    python tests/vectors/make_items.py FOLDER

Frozen as make.py is. It takes nothing, and makes items-1.json: one user's items of three kinds, an entry of the prompt
ledger among them, with their ids, their seals, their elements, and the manifest of a user who has just these.

    item id      HMAC-SHA256(HKDF(data key, "item id"), kind u64 | name)[:16]
    content      pad(name length u32 | name | content)
    place        field ITEM, the user, record = item id, the data key's epoch, version, binding = kind u256
    element      HMAC-SHA256(set key, "i" | kind u64 | item id | epoch u16 | version u64 | tag)
    ledger       name: 64 hex digits of the key; content: JSON without spaces, its keys in this order
"""

from __future__ import annotations

import hmac
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

second: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("make.py"))))

LEDGER, TOOL_FILE, FRAMEWORK = 1, 2, 3
EPOCH = 2


def item_id(data_key: bytes, kind: int, name: bytes) -> bytes:
    return hmac.digest(second.derive(data_key, "item id"), kind.to_bytes(8) + name, "sha256")[:16]


def padded(name: bytes, content: bytes) -> bytes:
    padded: bytes = second.pad(len(name).to_bytes(4) + name + content)
    return padded


def place(store: bytes, uref: bytes, *, kind: int, own_id: bytes, epoch: int, version: int) -> dict[str, Any]:
    return {"store": store, "user": uref, "record": own_id, "epoch": epoch, "version": version,
            "binding": kind.to_bytes(32)}  # fmt: skip


def element(set_key: bytes, row: tuple[Any, ...]) -> int:
    """Of a row of the table `items`, without its user reference."""
    kind, own_id, epoch, version, sealed = row
    numbers = epoch.to_bytes(2) + version.to_bytes(8)
    total: int = second.element(set_key, b"i", kind.to_bytes(8), own_id, numbers, sealed[-16:])
    return total


def entry(at: str, *, memory_ids: list[bytes], turn: bytes, said: bool, done: bool) -> bytes:
    """What an entry of the prompt ledger holds."""
    values = {"a": second.microseconds(at), "d": done, "m": [own_id.hex() for own_id in memory_ids], "s": said,
              "t": turn.hex()}  # fmt: skip
    return json.dumps(values, separators=(",", ":")).encode()


def items_file() -> dict[str, Any]:
    data_key, store, uref = second.fixed("data key"), second.fixed("store", 16), second.fixed("user", 16)
    memory_ids = [second.fixed(f"memory {number}", 16) for number in range(3)]
    entries: list[dict[str, Any]] = [
        {"at": "2025-11-25T06:30:00.123456+00:00", "memory_ids": memory_ids, "said": True, "done": True},
        {"at": "1969-12-31T23:59:59.999999+00:00", "memory_ids": [], "said": True, "done": False},
        {"at": "9999-12-31T23:59:59.999999+00:00", "memory_ids": memory_ids[:1], "said": False, "done": False},
    ]
    for number, values in enumerate(entries):
        values["turn"] = second.fixed(f"turn {number}", 16)
    written = [entry(**values) for values in entries]
    contents = [
        (LEDGER, second.fixed("ledger key").hex(), written[0]),
        (TOOL_FILE, "/memories/caf\u00e9.md", b"- likes tea\n"),
        (TOOL_FILE, "/memories/cafe\u0301.md", b""),
        (TOOL_FILE, "", bytes(range(256)) * 17),
        (FRAMEWORK, "/memories/caf\u00e9.md", b"\0"),
        (2**63 - 1, "\U0001f95c" * 300, b"a kind of the far future"),
    ]
    items = []
    total = 0
    for number, (kind, name, content) in enumerate(contents):
        own_id = item_id(data_key, kind, name.encode())
        version = (1, 2, 2, 3, 2**33, 2**63 - 1)[number]
        plaintext = padded(name.encode(), content)
        sealed = second.seal(
            second.derive(data_key, "item"),
            second.fixed(f"item nonce {number}", 12),
            plaintext,
            "ITEM",
            **place(store, uref, kind=kind, own_id=own_id, epoch=EPOCH, version=version),
        )
        row = (kind, own_id, EPOCH, version, sealed)
        summand = element(second.derive(data_key, "set"), row)
        total += summand
        items.append({"kind": kind, "name": name, "content": content, "item_id": own_id, "version": version,
                      "padded": plaintext, "sealed": sealed, "element": summand.to_bytes(32)})  # fmt: skip
    return {
        "data_key": data_key, "store_id": store, "uref": uref, "epoch": EPOCH, "items": items,
        "manifest": {"generation": 9, "items": len(items), "total": (total % 2**256).to_bytes(32),
                     "encoded": second.user_manifest(9, 0, len(items), 0, 17, total % 2**256)},
        "entries": [{**values, "encoded": encoded.decode()}
                    for values, encoded in zip(entries, written, strict=True)],
    }  # fmt: skip


def main(folder: Path) -> None:
    target = folder / "items-1.json"
    if target.exists():
        raise SystemExit(f"{folder} has known answers already, and they are never made again")
    target.write_text(second.as_json(items_file()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
