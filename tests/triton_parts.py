"""Stand-ins for Triton: the module its Python backend gives to a `model.py`, and a server of gRPC calls.

Written from Triton's documentation of the Python backend; the messages are tritonclient's own.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Network = Callable[[np.ndarray], dict[str, np.ndarray]]


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: tuple | list = (), error: TritonError | None = None) -> None:
        self.tensors, self._error = output_tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Request:
    """What a client asks of a model."""

    def __init__(self, **inputs: np.ndarray) -> None:
        self.tensors = [Tensor(name, values) for name, values in inputs.items()]


def backend(network: Network, model_name: str) -> ModuleType:
    """The module `triton_python_backend_utils`, with one model to call: `network`, under that name."""

    class InferenceRequest:
        def __init__(self, model_name: str, requested_output_names: list, inputs: list, preferred_memory: Any) -> None:
            self._model, self._names, self._inputs = model_name, requested_output_names, inputs

        async def async_exec(self) -> InferenceResponse:
            if self._model != model_name:
                return InferenceResponse(error=TritonError(f"unknown model {self._model}"))
            (crops,) = self._inputs
            assert crops.name() == "crops"
            found = network(crops.as_numpy())
            if not found:
                return InferenceResponse(error=TritonError(f"{self._model} is not there"))
            return InferenceResponse([Tensor(name, found[name]) for name in self._names])

    def by_name(holder: Any, name: str) -> Tensor:
        return next(tensor for tensor in holder.tensors if tensor.name() == name)

    module = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.InferenceRequest = InferenceRequest
    module.get_input_tensor_by_name = module.get_output_tensor_by_name = by_name
    module.TRITONSERVER_MEMORY_CPU = 0
    module.PreferredMemory = lambda kind, number: (kind, number)
    return module


def load_model(repository: Path, network: Network) -> Any:
    """`mal_label` of a repository, loaded and initialised as Triton does."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse((repository / "mal_label/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    # Triton fills in default fields and hands the configuration over as JSON.
    words = json_format.MessageToDict(config, preserving_proto_field_name=True)
    namespace: dict[str, Any] = {"__name__": "model"}
    name = "triton_python_backend_utils"
    sys.modules[name] = backend(network, "mal_student")
    try:
        path = repository / "mal_label/1/model.py"
        exec(compile(path.read_text(), str(path), "exec"), namespace)
    finally:
        del sys.modules[name]
    model = namespace["TritonPythonModel"]()
    model.initialize({"model_config": json.dumps(words), "model_repository": str(repository / "mal_label")})
    return model


@contextmanager
def server(answer: Callable[[Request], InferenceResponse]) -> Iterator[str]:
    """A gRPC server that has one model; yields its address."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
    from tritonclient.utils import serialize_byte_tensor

    kinds = {"UINT8": np.uint8, "FP32": np.float32}

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            pairs = zip(request.inputs, request.raw_input_contents, strict=True)
            arrays = {each.name: np.frombuffer(raw, kinds[each.datatype]).reshape(each.shape) for each, raw in pairs}
            response = answer(Request(**arrays))
            if response.has_error():
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, response.error().message())
            message = service_pb2.ModelInferResponse(model_name=request.model_name)
            for tensor in response.tensors:
                values = tensor.as_numpy()
                text = values.dtype == np.object_
                message.outputs.add(name=tensor.name(), datatype="BYTES" if text else "FP32", shape=values.shape)
                raw = serialize_byte_tensor(values).item() if text and values.size else values.tobytes()
                message.raw_output_contents.append(raw)
            return message

    made = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), made)
    port = made.add_insecure_port("localhost:0")
    made.start()
    try:
        yield f"localhost:{port}"
    finally:
        made.stop(0).wait()
