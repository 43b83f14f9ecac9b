"""Adapters to the chat providers: one file each, imported as `memlayer.adapters`.

An adapter knows a provider and one small interface, never the store. They come in a later step.
"""

__all__: list[str] = []
