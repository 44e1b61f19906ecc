"""How each loss and pair is written in a trace; a layer says so itself, in `Layer.formulas`, with the same signs."""

from __future__ import annotations

from jbp.losses import (
    CrossEntropy,
    L2Loss,
    Loss,
    MeanSquaredError,
    SigmoidBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from jbp.pairs import Outer, Pair, Scale, Shift, Window


def of_loss(loss: Loss, positions: int, classes: bool) -> tuple[str, str]:
    """e = …, and δ = …, of the output p and the target t (if `classes`, its number), averaged over the positions."""
    value, delta = _of_loss(loss, classes)
    if positions == 1 or type(loss) is MeanSquaredError:
        return f"e = {value}", f"δ = {delta}"
    return f"e = mean over {positions} positions of {value}", f"δ = 1/{positions}·({delta})"


def _of_loss(loss: Loss, classes: bool) -> tuple[str, str]:
    match loss:
        case SquaredError():
            return "Σ (p − t)²", "2·(p − t)"
        case L2Loss():
            return "½·Σ (p − t)²", "p − t"
        case MeanSquaredError():
            return "mean of (p − t)²", "2·(p − t) / number of outputs"
        case SoftmaxCrossEntropy() if classes:
            return "−log softmax(p)[t]", "softmax(p), less 1 at t"
        case SoftmaxCrossEntropy():
            return "−Σ t∘log softmax(p)", "softmax(p)·Σ t − t"
        case SigmoidBinaryCrossEntropy():
            return "Σ −t∘log σ(p) − (1 − t)∘log(1 − σ(p))", "σ(p) − t"
        case CrossEntropy() if classes:
            return "−log p[t]", "−1/p at t, else 0"
        case CrossEntropy():
            return "−Σ t∘log p", "−t / p"
    return f"{loss!r} of p and t", "∂e/∂p"


def of_pair(pair: Pair, name: str) -> str:
    """∂e/∂name = …, from what the pair holds: h and δ at each use t of the parameter."""
    if pair.constant:
        return f"∂e/∂{name} = 0"
    if isinstance(pair, Window):  # summed over its sites, whatever their number
        return f"∂e/∂{name} = h∗δ"
    outer = "δ ⊗ h" if isinstance(pair, Outer) and pair.transposed else "h ⊗ δ"
    for kind, words in ((Outer, outer), (Shift, "δ"), (Scale, "h∘δ")):
        if isinstance(pair, kind):
            return f"∂e/∂{name} = {'' if pair.uses == 1 else 'Σₜ '}{words}"
    return f"∂e/∂{name} from its {type(pair).__name__}"
