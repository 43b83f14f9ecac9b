"""The images of a user's memories, one sealed item each: the content is the file, the id is made of the memory's.

An image is not held in RAM with the index and is not opened with it: a memory says the digest of its image, inside of
its own seal, and that is what pins the content. So a user's rows add up without a look at the images, and each is
checked where it is read: it must open in its place, and be the file that the memory says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlayer import tables
from memlayer.errors import StoreDamagedError
from memlayer.records import image_digest
from memlayer.sealer import ItemKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from memlayer.records import Memory
    from memlayer.rows import ItemRow
    from memlayer.sealer import OpenedItem, Sealer, UnlockedUser

__all__ = ["noted_images", "open_image", "seal_image"]


def seal_image(sealer: Sealer, user: UnlockedUser, *, memory_id: bytes, image: bytes) -> ItemRow:
    """The row of a memory's image, for the user's next generation."""
    return sealer.seal_item(user, kind=ItemKind.IMAGE, item_id=_id(user, memory_id), content=image)


def open_image(
    sealer: Sealer, connection: Connection, user: UnlockedUser, *, memory_id: bytes, memory: Memory
) -> bytes | None:
    """The file; None for a memory without one.

    Args:
        connection: in the snapshot in which the user's rows were added up.

    Raises:
        StoreDamagedError: it is not there, or not the one that was remembered.
    """
    if memory.image_sha256 is None:
        return None
    row = tables.read_item(connection, user.uref, kind=ItemKind.IMAGE, item_id=_id(user, memory_id))
    if row is not None:
        image = sealer.open_item(row, user=user).content
        if image_digest(image) == memory.image_sha256:
            return image
    raise StoreDamagedError("the image of a memory is not the one that was remembered with it")


def noted_images(
    sealer: Sealer, connection: Connection, user: UnlockedUser, memory_ids: Sequence[bytes]
) -> list[OpenedItem]:
    """The images of those of these memories that have one, unopened."""
    if not memory_ids or not user.manifest.items:
        return []
    item_ids = [_id(user, memory_id) for memory_id in memory_ids]
    rows = tables.read_items_by_id(connection, user.uref, kind=ItemKind.IMAGE, item_ids=item_ids)
    asked = {(user.uref, ItemKind.IMAGE, item_id) for item_id in item_ids}
    if not {(row.uref, row.kind, row.item_id) for row in rows} <= asked:
        # They are not opened, and what is found here may be dropped.
        raise StoreDamagedError("images of other memories were read than those that were asked for")
    return [sealer.note_item(row, user=user) for row in rows]


def _id(user: UnlockedUser, memory_id: bytes) -> bytes:
    return user.keys.item_id(ItemKind.IMAGE, memory_id.hex().encode())
