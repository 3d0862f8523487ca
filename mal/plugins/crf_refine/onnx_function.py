"""CRF refinement as an ONNX local function: what ONNX Runtime runs as it is.

A model holds the node `mal::CRFRefine` once, and this body for it. A runtime that has the plugin of the
same name takes the plugin (`plugin_namespace` tells TensorRT's parser so), any other one the body.
What it means: `reference.py`.

The body is a Loop, not unrolled: in ONNX Runtime 1.31 on a CPU it was the faster one at every size and number of
iterations measured, by 4 % or more (benchmarks/crf.py), and the number of iterations stays an attribute of the node.
The window is a convolution with nine one-hot filters: 5 operations an iteration, and its padding is the crop's border.
"""

import numpy as np
from onnx import FunctionProto, NodeProto, helper, parser

from mal.plugins.crf_refine.contract import HIGH, LIMIT, LOW
from mal.plugins.crf_refine.names import DOMAIN, ITERATIONS, NAME, VERSION, ZETA

OPSET = 20


def crf_node(logits: str, guide: str, inside: str, refined: str, iterations: int, zeta: float) -> NodeProto:
    """The node; the arguments are names of values, then the attributes."""
    node = helper.make_node(NAME, [logits, guide, inside], [refined], name="crf_refine", domain=DOMAIN)
    attributes = {ITERATIONS: iterations, ZETA: float(zeta), "plugin_namespace": DOMAIN, "plugin_version": VERSION}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def crf_function() -> FunctionProto:
    """The body: any floating type and size, computed in float32, result in the type of `logits`."""
    return parser.parse_function(_TEXT)


def _weight(y: int, x: int) -> str:
    """Lines for `apart_<y><x>` (B, 1, h, w), the squared colour distance to the neighbour in row y, column x."""
    # The last rows and columns to take: all but 2, all but 1, all.
    ends = {0: -2, 1: -1, 2: np.iinfo(np.int64).max}
    at = f"{y}{x}"
    return f"""
    start_{at} = Constant<value_ints = [{y}, {x}]>()
    end_{at} = Constant<value_ints = [{ends[y]}, {ends[x]}]>()
    neighbour_{at} = Slice(padded, start_{at}, end_{at}, rows_columns)
    difference_{at} = Sub(neighbour_{at}, colours)
    square_{at} = Mul(difference_{at}, difference_{at})
    apart_{at} = ReduceSum<keepdims = 1>(square_{at}, channels)"""


_PLACES = [(y, x) for y in range(3) for x in range(3)]
_ONE_HOT = ", ".join(str(value) for value in np.eye(9).ravel().tolist())
_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{NAME}<{ITERATIONS}, {ZETA}, plugin_namespace, plugin_version>(logits, guide, inside) => (refined) {{
    zero = Constant<value_float = 0.0>()
    one = Constant<value_float = 1.0>()
    tiny = Constant<value_float = 1e-30>()
    low = Constant<value_float = {LOW}>()
    high = Constant<value_float = {HIGH}>()
    upper = Constant<value_float = {LIMIT}>()
    lower = Neg(upper)
    channels = Constant<value_ints = [1]>()
    rows_columns = Constant<value_ints = [2, 3]>()

    opinion_raw = Cast<to = 1>(logits)
    opinion_missing = IsNaN(opinion_raw)
    opinion = Where(opinion_missing, zero, opinion_raw)
    inside_raw = Cast<to = 1>(inside)
    inside_missing = IsNaN(inside_raw)
    inside_known = Where(inside_missing, zero, inside_raw)
    coverage = Clip(inside_known, zero, one)
    coverage_positive = Clip(inside_known, tiny, one)
    log_coverage = Log(coverage_positive)

    colours = Cast<to = 1>(guide)
    border = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>()
    padded = Pad(colours, border)
    {"".join(_weight(y, x) for y, x in _PLACES)}
    apart = Concat<axis = 1>({", ".join(f"apart_{y}{x}" for y, x in _PLACES)})
    scale_zeta = Constant<value_float: float = @{ZETA}>()
    scale_square = Mul(scale_zeta, scale_zeta)
    minus_half = Constant<value_float = -0.5>()
    scale = Div(minus_half, scale_square)
    exponent = Mul(apart, scale)
    weights_raw = Exp(exponent)
    weights_missing = IsNaN(weights_raw)
    weights_any = Where(weights_missing, zero, weights_raw)
    is_centre = Constant<value = bool[1, 9, 1, 1] {{0, 0, 0, 0, 1, 0, 0, 0, 0}}>()
    weights = Where(is_centre, one, weights_any)

    probability = Sigmoid(opinion)
    probability_inside = Mul(probability, coverage)
    front = Clip(probability_inside, low, high)
    back = Sub(one, front)
    odds = Div(front, back)
    first = Log(odds)

    window = Constant<value = float[9, 1, 3, 3] {{{_ONE_HOT}}}>()
    trips = Constant<value_int: int = @{ITERATIONS}>()
    go_on = Constant<value = bool {{1}}>()
    last = Loop(trips, go_on, first)<body = step (int64 trip, bool before, float[batch, 1, rows, columns] state)
        => (bool after, float[batch, 1, rows, columns] next) {{
        after = Identity(before)
        neighbours = Conv<pads = [1, 1, 1, 1]>(state, window)
        votes = Mul(neighbours, weights)
        sum = ReduceSum<keepdims = 1>(votes, channels)
        total = Add(sum, log_coverage)
        next = Clip(total, lower, upper)
    }}>
    refined = CastLike(last, logits)
}}
"""
