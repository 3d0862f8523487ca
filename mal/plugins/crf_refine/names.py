"""What ONNX graphs and TensorRT's plugin registry call CRF refinement and its attributes."""

DOMAIN, NAME, VERSION = "mal", "CRFRefine", "1"
ITERATIONS, ZETA = "iterations", "zeta"
