"""What share of a training step is CRF refinement, as the losses use it: python benchmarks/crf_training.py

The shipped student, a batch as in training, in processor time of this process, so that other work on the machine does
not count. The step is forward, teacher, losses, backward and optimizer; the refinement is timed inside it.
"""

import argparse
import json
import platform
import statistics
import time
from importlib import resources
from pathlib import Path

import torch

from mal.config import TrainConfig
from mal.network.checkpoint import load_student
from mal.plugins.crf_refine import torch_body
from mal.train import losses
from mal.train.module import MalModule, trainable
from mal.train.views import View

STEPS = 12  # the first two warm up


def batch_of(config: TrainConfig) -> View:
    """Smooth noise: neither the network's nor the kernel's time depends on the pixels."""
    torch.manual_seed(0)
    cells, count = config.size // 4, config.batch
    crops = torch.nn.functional.interpolate(torch.rand(count, 3, cells // 4, cells // 4) * 255, config.size)
    margin = config.expansion / 2 / (1 + config.expansion)
    return View(
        student=crops,
        teacher=crops,
        box=torch.tensor([[margin, margin, 1 - margin, 1 - margin]]).expand(count, 4),
        valid=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4),
        target=torch.rand(count, 1, cells, cells).round(),
        known=torch.ones(count, 1, cells, cells),
        trust=torch.ones(count),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the figures here too.")
    to = parser.parse_args().json
    config = TrainConfig()
    student, _ = load_student(Path(str(resources.files("mal"))) / "models" / "student.safetensors")
    trainable(student, config, pretrained=True)
    module = MalModule(student, config, 0, crf=True)
    optimizer = module.configure_optimizers()["optimizer"]
    spent = {"crf": 0.0}
    refine = losses.crf_refine

    def timed(*arguments):
        begin = time.process_time()
        refined = refine(*arguments)
        spent["crf"] += time.process_time() - begin
        return refined

    losses.crf_refine = timed
    batch, steps, parts = batch_of(config), [], []
    for _ in range(STEPS):
        spent["crf"], begin = 0.0, time.process_time()
        terms = module.losses(batch)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.process_time() - begin)
        parts.append(spent["crf"])
    step, part = statistics.median(steps[2:]) * 1000, statistics.median(parts[2:]) * 1000
    figures = {
        "batch": config.batch,
        "size": config.size,
        "iterations": config.losses.crf_iterations,
        "body": torch_body.body(torch.device("cpu")),
        "step_ms": round(step, 2),
        "crf_ms": round(part, 2),
        "share": round(part / step, 4),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(figures, indent=1))
    if to:
        to.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
