"""The constants in an ONNX file."""

from onnx import ModelProto

from mal.config import ModelConstants


def set_constants(model: ModelProto, constants: ModelConstants) -> None:
    """Make `constants` the model's metadata, in place of what was there."""
    del model.metadata_props[:]
    for key, text in constants.to_metadata().items():
        model.metadata_props.add(key=key, value=text)
