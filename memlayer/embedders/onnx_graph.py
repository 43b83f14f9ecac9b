"""A BERT sentence embedder as an ONNX graph, written out by hand. Pure: it holds no weights and imports nothing.

The graph is a few kilobytes that say what is computed; whoever runs it hands in the weights by the names that they
have in the model's safetensors file. So nothing is exported, nothing lies in a cache that could be stale or damaged,
and neither torch nor an exporter is needed, which all give other graphs with each version.

Operators are those of the standard, version 20, so that any ONNX runtime takes it; onnxruntime fuses them as it loads
(attention, layer norms with their sums, biases with GELU). Of int8 weights `DynamicQuantizeLinear` and `MatMulInteger`
make the products.

The file format is protobuf, of which the writer needs two of five wire types. Field numbers are those of
onnx.proto3, which never change.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INPUTS", "OUTPUT", "Bert", "bert_graph", "scale_of"]

INPUTS: Final = ("input_ids", "attention_mask")
"""Both int64 `(texts, pieces)`."""
OUTPUT: Final = "sentence_embedding"
"""float32 `(texts, hidden)`: the mean over the pieces that count, of length 1."""

_FLOAT, _INT8, _INT64 = 1, 3, 7  # TensorProto.DataType
_OPSET: Final = 20  # the first with Gelu
_IR_VERSION: Final = 9  # what came with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bert:
    """The sizes of a BERT model, as its config.json names them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    epsilon: float


def scale_of(weight: str) -> str:
    """The name of the scales, one a column, that an int8 weight is multiplied with."""
    return f"{weight}.scale"


def bert_graph(bert: Bert, *, int8: bool = False) -> bytes:
    """The model as an ONNX file without its weights.

    Each initializer is declared as external data and has the name that it has in the weights' file; a `weight` of a
    `dense`, `query`, `key` or `value` is expected transposed, `(in, out)`.

    Args:
        bert: the sizes.
        int8: whether those weights are int8, with float32 scales beside them (`scale_of`).
    """
    graph = _Graph(bert, int8=int8)
    graph.build()
    return graph.to_bytes()


class _Graph:
    """Nodes and initializers as they gather. A class because every step adds to both."""

    def __init__(self, bert: Bert, *, int8: bool) -> None:
        self._bert = bert
        self._int8 = int8
        self._nodes: list[bytes] = []
        self._initializers: list[bytes] = []

    def build(self) -> None:
        """The whole model, from the inputs to the output."""
        bert = self._bert
        zero, one, last = (self._integers(name, [value]) for name, value in (("zero", 0), ("one", 1), ("two", 2)))
        shape = self._node("Shape", "input_ids")
        length = self._node("Slice", shape, one, last)
        words = self._node(
            "Gather", self._floats("embeddings.word_embeddings.weight", bert.vocabulary, bert.hidden), "input_ids"
        )
        table = self._floats("embeddings.position_embeddings.weight", bert.positions, bert.hidden)
        positions = self._node("Slice", table, zero, length, zero)
        # All text is of the first kind; the second is for pairs of texts.
        kinds = self._floats("embeddings.token_type_embeddings.weight", 2, bert.hidden)
        kind = self._node("Slice", kinds, zero, one, zero)
        state = self._norm(self._node("Add", self._node("Add", words, positions), kind), "embeddings.LayerNorm")
        mask = self._node("Cast", "attention_mask", to=_FLOAT)
        # 0 where a piece counts, and as good as minus infinity where there is none.
        bias = self._node(
            "Mul", self._node("Sub", self._constant("c_one", 1.0), mask), self._constant("c_low", -3.0e38)
        )
        bias = self._node("Unsqueeze", bias, self._integers("heads_and_queries", [1, 2]))
        for layer in range(bert.layers):
            state = self._layer(f"encoder.layer.{layer}", state, bias)
        mask = self._node("Unsqueeze", mask, last)
        total = self._node("ReduceSum", self._node("Mul", state, mask), one, keepdims=0)
        # As sentence-transformers does both: the mean, then the length, neither divided by zero.
        mean = self._node(
            "Div",
            total,
            self._node("Max", self._node("ReduceSum", mask, one, keepdims=0), self._constant("c_count", 1e-9)),
        )
        norm = self._node("Max", self._node("ReduceL2", mean, one, keepdims=1), self._constant("c_norm", 1e-12))
        self._node("Div", mean, norm, output=OUTPUT)

    def _layer(self, name: str, state: str, bias: str) -> str:
        bert = self._bert
        size = bert.hidden // bert.heads
        split = self._integers("split", [0, 0, bert.heads, size])
        attention = f"{name}.attention"
        query, key, value = (
            self._node("Reshape", self._dense(state, f"{attention}.self.{part}", bert.hidden, bert.hidden), split)
            for part in ("query", "key", "value")
        )
        query = self._node("Transpose", query, perm=[0, 2, 1, 3])
        key = self._node("Transpose", key, perm=[0, 2, 3, 1])
        value = self._node("Transpose", value, perm=[0, 2, 1, 3])
        scores = self._node("Div", self._node("MatMul", query, key), self._constant("c_root", size**0.5))
        weights = self._node("Softmax", self._node("Add", scores, bias), axis=-1)
        read = self._node("Transpose", self._node("MatMul", weights, value), perm=[0, 2, 1, 3])
        read = self._node("Reshape", read, self._integers("join", [0, 0, bert.hidden]))
        read = self._dense(read, f"{attention}.output.dense", bert.hidden, bert.hidden)
        state = self._norm(self._node("Add", read, state), f"{attention}.output.LayerNorm")
        wide = self._node("Gelu", self._dense(state, f"{name}.intermediate.dense", bert.hidden, bert.intermediate))
        narrow = self._dense(wide, f"{name}.output.dense", bert.intermediate, bert.hidden)
        return self._norm(self._node("Add", narrow, state), f"{name}.output.LayerNorm")

    def _dense(self, state: str, name: str, rows: int, columns: int) -> str:
        weight, bias = f"{name}.weight", self._floats(f"{name}.bias", columns)
        if not self._int8:
            return self._node("Add", self._node("MatMul", state, self._floats(weight, rows, columns)), bias)
        self._initializer(weight, _INT8, [rows, columns])
        number = len(self._nodes)
        small, scale, zero = (f"{part}_{number}" for part in ("small", "scale", "zero"))
        self._nodes.append(_node("DynamicQuantizeLinear", [state], [small, scale, zero], {}))
        product = self._node("Cast", self._node("MatMulInteger", small, weight, zero), to=_FLOAT)
        product = self._node("Mul", product, self._node("Mul", scale, self._floats(scale_of(weight), columns)))
        return self._node("Add", product, bias)

    def _norm(self, state: str, name: str) -> str:
        weight, bias = (self._floats(f"{name}.{part}", self._bert.hidden) for part in ("weight", "bias"))
        return self._node("LayerNormalization", state, weight, bias, axis=-1, epsilon=self._bert.epsilon)

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: int | float | list[int]) -> str:
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(_node(operator, list(inputs), [output], attributes))
        return output

    def _floats(self, name: str, *shape: int) -> str:
        return self._initializer(name, _FLOAT, shape)

    def _initializer(self, name: str, kind: int, shape: Sequence[int]) -> str:
        place = _text(1, "location") + _text(2, "weights")
        self._initializers.append(_dims(shape) + _number(2, kind) + _text(8, name) + _field(13, place) + _number(14, 1))
        return name

    def _constant(self, name: str, value: float) -> str:
        return self._inline(name, _FLOAT, [], struct.pack("<f", value))

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._inline(name, _INT64, [len(values)], struct.pack(f"<{len(values)}q", *values))

    def _inline(self, name: str, kind: int, shape: Sequence[int], raw: bytes) -> str:
        tensor = _dims(shape) + _number(2, kind) + _text(8, name) + _field(9, raw)
        if tensor not in self._initializers:
            self._initializers.append(tensor)
        return name

    def to_bytes(self) -> bytes:
        """The ModelProto."""
        graph = b"".join(_field(1, node) for node in self._nodes) + _text(2, "bert")
        graph += b"".join(_field(5, tensor) for tensor in self._initializers)
        graph += b"".join(_field(11, _value(name, _INT64, ["texts", "pieces"])) for name in INPUTS)
        graph += _field(12, _value(OUTPUT, _FLOAT, ["texts", self._bert.hidden]))
        return _number(1, _IR_VERSION) + _text(2, "memlayer") + _field(7, graph) + _field(8, _number(2, _OPSET))


# Protobuf, and the messages of ONNX


def _node(
    operator: str, inputs: list[str], outputs: list[str], attributes: dict[str, int | float | list[int]]
) -> bytes:
    names = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    settings = b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
    return names + _text(3, outputs[0]) + _text(4, operator) + settings


def _attribute(name: str, value: int | float | list[int]) -> bytes:
    if isinstance(value, float):
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + b"".join(_number(8, number) for number in value) + _number(20, 7)


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    sizes = b"".join(_field(1, _text(2, size) if isinstance(size, str) else _number(1, size)) for size in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, sizes)))


def _dims(shape: Sequence[int]) -> bytes:
    return b"".join(_number(1, size) for size in shape)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
