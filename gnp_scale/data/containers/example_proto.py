"""`tf.train.Example`, in which TensorFlow Datasets keeps an example, without TensorFlow.

The messages are those of tensorflow/core/example/{example,feature}.proto.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = ".tensorflow"


def _field(name: str, number: int, kind: str, *, repeated: bool = False) -> FieldDescriptorProto:
    """A field of a built-in type, or of a message whose name begins with a dot."""
    is_message = kind.startswith(".")
    return FieldDescriptorProto(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_MESSAGE if is_message else FieldDescriptorProto.Type.Value(f"TYPE_{kind}"),
        type_name=kind if is_message else None,
    )


def _make_example_class() -> Any:
    entry = DescriptorProto(
        name="FeatureEntry", field=[_field("key", 1, "STRING"), _field("value", 2, f"{_PACKAGE}.Feature")]
    )
    entry.options.map_entry = True
    lists = {
        "bytes_list": ("BytesList", "BYTES"),
        "float_list": ("FloatList", "FLOAT"),
        "int64_list": ("Int64List", "INT64"),
    }
    kinds = [
        _field(name, number, f"{_PACKAGE}.{message}") for number, (name, (message, _)) in enumerate(lists.items(), 1)
    ]
    file = FileDescriptorProto(
        name="example.proto",
        package=_PACKAGE[1:],
        syntax="proto3",
        message_type=[
            *(
                DescriptorProto(name=name, field=[_field("value", 1, kind, repeated=True)])
                for name, kind in lists.values()
            ),
            DescriptorProto(name="Feature", field=kinds),
            DescriptorProto(
                name="Features",
                field=[_field("feature", 1, f"{_PACKAGE}.Features.FeatureEntry", repeated=True)],
                nested_type=[entry],
            ),
            DescriptorProto(name="Example", field=[_field("features", 1, f"{_PACKAGE}.Features")]),
        ],
    )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE[1:]}.Example"))


_Example = _make_example_class()


def parse(record: bytes, image: str, label: str) -> tuple[bytes, int, str]:
    """The features called `image` and `label` of an example, and its `file_name`, or nothing if it has none.

    Raises:
        ValueError: the record is not an example, or has no such features.
    """
    try:
        feature = _Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"the record is not an example: {error}") from error
    data, number = feature[image].bytes_list.value, feature[label].int64_list.value
    if len(data) != 1 or len(number) != 1:
        raise ValueError(
            f"the example has {len(data)} values of {image!r} and {len(number)} of {label!r}, not 1 of each"
        )
    names = feature["file_name"].bytes_list.value
    return data[0], number[0], names[0].decode(errors="replace") if names else ""


def serialize(data: bytes, label: int, name: str) -> bytes:
    """An example with the features `image`, `label` and `file_name`; equal arguments give equal bytes."""
    example = _Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(data)
    feature["label"].int64_list.value.append(label)
    feature["file_name"].bytes_list.value.append(name.encode(errors="surrogateescape"))
    return example.SerializeToString(deterministic=True)
