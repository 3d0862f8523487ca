"""The picture of a calibration: what each layer costs, and which stayed in float."""

from io import BytesIO

from matplotlib.figure import Figure

from mal.calibration.search import Calibration

_SHOWN = 40


def plot(calibration: Calibration, kept: tuple[str, ...]) -> bytes:
    """PNG: a bar a layer, the dearest 40, in the order of their cost."""
    shown = list(calibration.costs.items())[:_SHOWN]
    figure = Figure(figsize=(8, 1 + 0.2 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for in_float, colour, label in ((False, "tab:blue", "INT8"), (True, "tab:orange", "kept in float")):
        chosen = [(at, cost) for at, (name, cost) in enumerate(shown) if (name in kept) == in_float]
        if chosen:
            axes.barh([at for at, _ in chosen], [cost for _, cost in chosen], color=colour, label=label)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("share of the masks lost when this layer alone is INT8 (1 - mean mask-IoU)")
    together = calibration.tried[calibration.method]
    axes.set_title(f"{calibration.scheme.name}, {calibration.method} ranges; all layers: {together:.4f}")
    axes.legend(loc="lower right")
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
