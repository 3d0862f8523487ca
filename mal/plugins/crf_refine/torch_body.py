"""CRF refinement of torch tensors: the training target and the torch session. What it means: `reference.py`.

On a CPU the compiled kernel does it, 6 to 8 times as fast (benchmarks/crf.py), where it is built or can be; on a CUDA
GPU the compiled CUDA kernel, where it has been built; elsewhere torch's own operations. `body` tells which.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, threshold

from mal.plugins import cuda_library
from mal.plugins.crf_refine import compiled, cuda
from mal.plugins.crf_refine.contract import HALF_WINDOW, HIGH, LIMIT, LOW, check

# torch splits an operation of more than 32,768 elements over its threads. Hundreds of such short
# operations a call wait for each other whenever the machine is busy (8 s instead of 0.04 s measured);
# smaller groups of crops run serially, and stay in the L2 cache.
_SERIAL_PIXELS = 16384


@torch.no_grad()
def crf_refine(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    """Refine logits so that like-coloured neighbours agree, inside the box. No gradient.

    Args:
        logits: (B, 1, h, w) raw log-odds, any floating dtype, any device.
        guide: (B, 3, h, w) colours in normalised units.
        inside: (1 or B, 1, h, w) box coverage of each pixel, 0..1.
        iterations: steps, >= 0; 0 returns the start state.
        zeta: colour scale in normalised units, > 0.

    Returns:
        (B, 1, h, w) log-odds within ±ln 9, dtype and device of `logits`; computed in float32.

    Raises:
        ShapeError: shapes that do not belong together, or an attribute out of range.
    """
    how = body(logits.device)
    if how == "CUDA kernel":
        return _refine_on_gpu(logits, guide, inside, iterations, zeta)
    if how == "kernel":
        first, second, third = (tensor.detach().float().numpy() for tensor in (logits, guide, inside))
        refined = compiled.crf_refine(first, second, third, iterations, zeta, threads=torch.get_num_threads())
        return torch.from_numpy(refined).to(logits.dtype)
    return crf_refine_torch(logits, guide, inside, iterations, zeta)


def body(device: torch.device) -> str:
    """What refines tensors of a device: "kernel" (compiled for this CPU), "CUDA kernel" or "torch"."""
    if device.type == "cuda":
        return "CUDA kernel" if cuda_library.available() else "torch"
    return "kernel" if device.type == "cpu" and compiled.available() else "torch"


def _refine_on_gpu(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    """By the CUDA kernel, in torch's current stream."""
    check(tuple(logits.shape), tuple(guide.shape), tuple(inside.shape), iterations, zeta)
    half = guide.dtype == torch.float16
    first, third = (tensor.detach().float().contiguous() for tensor in (logits, inside))
    second = (guide if half else guide.float()).detach().contiguous()
    refined = torch.empty_like(first)
    with torch.cuda.device(logits.device):
        cuda.refine_on_gpu(
            first.data_ptr(), second.data_ptr(), half, third.data_ptr(), len(third), refined.data_ptr(),
            tuple(first.shape), iterations, zeta, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
    return refined.to(logits.dtype)


@torch.no_grad()
def crf_refine_torch(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    """As `crf_refine`, by torch's own operations on any device."""
    check(tuple(logits.shape), tuple(guide.shape), tuple(inside.shape), iterations, zeta)
    if logits.device.type != "cpu" or logits.numel() <= _SERIAL_PIXELS:
        return _refine(logits, guide, inside, iterations, zeta)
    count = max(1, _SERIAL_PIXELS // logits[0].numel())
    refined = torch.empty_like(logits)
    for first in range(0, len(logits), count):
        crops = slice(first, first + count)
        coverage = inside if len(inside) == 1 else inside[crops]
        refined[crops] = _refine(logits[crops], guide[crops], coverage, iterations, zeta)
    return refined


def _refine(logits: Tensor, guide: Tensor, inside: Tensor, iterations: int, zeta: float) -> Tensor:
    coverage = inside.float().nan_to_num(nan=0.0).clamp(0, 1)
    start = (coverage * torch.sigmoid(logits.float().nan_to_num(nan=0.0))).clamp(LOW, HIGH).logit()
    # ln 0 as a number so negative that the clamp decides: -inf + a sum is the same, but slower on a CPU.
    log_coverage = coverage.log().clamp_min(-1e4).expand_as(start)

    # One column right and one row below every crop make all crops one line of pixels on which a
    # neighbour is a fixed distance away; weights into this margin are 0, so it stays 0.
    state = pad(start, (0, 1, 0, 1)).flatten()
    constant = pad(log_coverage, (0, 1, 0, 1)).flatten()
    colours = pad(guide.float(), (0, 1, 0, 1), value=float("nan")).transpose(0, 1).reshape(3, -1)
    width = logits.shape[3] + 1
    pairs = [(step, _weights(colours, step, zeta)) for step in (y * width + x for y, x in HALF_WINDOW)]
    total = torch.empty_like(state)
    for _ in range(iterations):
        torch.add(state, constant, out=total)
        for step, weight in pairs:
            total[:-step].addcmul_(weight, state[step:])
            total[step:].addcmul_(weight, state[:-step])
        torch.clamp(total, -LIMIT, LIMIT, out=state)
    batch, _, height, _ = logits.shape
    return state.view(batch, 1, height + 1, width)[:, :, :-1, :-1].to(logits.dtype)


def _weights(colours: Tensor, step: int, zeta: float) -> Tensor:
    """k(p, p + step) for every pixel p of the line but the last `step`; 0 where a colour is not finite."""
    apart = (colours[:, step:] - colours[:, :-step]).square_().sum(0)
    # Denormal weights would cost 100 x the time, and are nothing.
    return threshold(torch.exp(apart * (-0.5 / zeta**2)).nan_to_num_(nan=0.0), 1e-30, 0.0)
