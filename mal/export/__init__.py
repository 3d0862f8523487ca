"""Student -> ONNX file, gated by parity, with a manifest beside it."""
