"""The parts of a sentencepiece model file that are read here, as a protocol buffer.

The classes that come with the sentencepiece package refuse every protobuf library older than the one they were made
with, and Apache Beam needs an older one; these are made of a description, by whatever library is there.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "vlm_jax.sentencepiece"
_TYPES = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "float": _FIELD.TYPE_FLOAT,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
}

_MESSAGES: dict[str, tuple[tuple[int, str, str, str], ...]] = {
    "Piece": ((1, "piece", "string", ""), (2, "score", "float", ""), (3, "type", "int32", "1")),
    "Trainer": ((3, "model_type", "int32", "1"),),
    "Normalizer": (
        (2, "precompiled_charsmap", "bytes", ""),
        (3, "add_dummy_prefix", "bool", "true"),
        (4, "remove_extra_whitespaces", "bool", "true"),
    ),
    "Model": (
        (1, "pieces", "*Piece", ""),
        (2, "trainer_spec", "Trainer", ""),
        (3, "normalizer_spec", "Normalizer", ""),
    ),
}
"""Field number, name, type (* = a list) and default of what is read; other fields are passed over."""

NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6
"""Types of pieces."""


def parse_model(data: bytes) -> Any:
    """A model file's pieces, trainer_spec and normalizer_spec."""
    return _CLASS.FromString(data)


def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="vlm_jax/sentencepiece.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind, default in fields:
            label = _FIELD.LABEL_REPEATED if kind.startswith("*") else _FIELD.LABEL_OPTIONAL
            field = message.field.add(number=number, name=field_name, label=label)
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind.removeprefix('*')}"
            if default:
                field.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))


_CLASS = _model_class()
