"""How each layer, loss and pair is written in a trace. Of a layer not listed here the rows say only what they are.

Multiplication element by element is ∘, of matrices ·, and the outer product ⊗; Σ is over the last axis.
"""

from __future__ import annotations

from jbp import layers
from jbp.layer import Layer
from jbp.layers.step import Step
from jbp.losses import (
    CrossEntropy,
    L2Loss,
    Loss,
    MeanSquaredError,
    SigmoidBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from jbp.pairs import Outer, Pair, Scale, Shift

_SIGMA = "σ(x) = 1/(1 + e^−x)"
_U = "u = √(2/π)·(x + 0.044715·x³)"


def of_layer(layer: Layer) -> tuple[str, str]:
    """y = …, and δ_x = …, of a layer in evaluation."""
    match layer:
        case layers.Dense(use_bias=True):
            return "y = x·weight + bias", "δ_x = δ·weightᵀ"
        case layers.Dense():
            return "y = x·weight", "δ_x = δ·weightᵀ"
        case layers.Flatten():
            return "y = x as a vector", "δ_x = δ in the shape of x"
        case layers.Identity() | layers.Dropout():
            return "y = x", "δ_x = δ"
        case layers.Relu():
            return "y = max(0, x)", "δ_x = δ where y > 0, else 0"
        case layers.LeakyRelu(negative_slope=a):
            return f"y = x where x ≥ 0, else {a:g}·x", f"δ_x = δ where x ≥ 0, else {a:g}·δ"
        case layers.Tanh():
            return "y = tanh(x)", "δ_x = (1 − y²)∘δ"
        case layers.Sigmoid():
            return "y = 1/(1 + e^−x)", "δ_x = y∘(1 − y)∘δ"
        case layers.Softmax():
            return "y = e^x / Σ e^x", "δ_x = y∘(δ − Σ y∘δ)"
        case layers.Softplus():
            return "y = log(1 + e^x)", "δ_x = (1 − e^−y)∘δ"
        case layers.Elu(alpha=a):
            return f"y = x where x > 0, else {a:g}·(e^x − 1)", f"δ_x = δ where x > 0, else (y + {a:g})∘δ"
        case layers.Silu():
            return f"y = x∘σ(x), {_SIGMA}", f"δ_x = σ(x)∘(1 + x∘(1 − σ(x)))∘δ, {_SIGMA}"
        case layers.Gelu(approximate=True):
            slope = "u′ = √(2/π)·(1 + 0.134145·x²)"
            return (
                f"y = ½·x∘(1 + tanh u), {_U}",
                f"δ_x = ½·(1 + tanh u + x∘(1 − tanh² u)∘u′)∘δ, {_U}, {slope}",
            )
        case layers.Gelu():
            return "y = x∘Φ(x), Φ normal distribution", "δ_x = (Φ(x) + x∘φ(x))∘δ, φ normal density"
        case Step(surrogate="straight_through"):
            return "y = 1 where x > 0, else 0", "δ_x = δ, straight through"
        case Step(surrogate=name, sharpness=a):
            return "y = 1 where x > 0, else 0", f"δ_x = ψ(x)∘δ, ψ the surrogate {name} of sharpness {a:g}"
    return f"y = {layer!r} of x", "δ_x = (∂y/∂x)ᵀ δ"


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
    for kind, words in ((Outer, "h ⊗ δ"), (Shift, "δ"), (Scale, "h∘δ")):
        if isinstance(pair, kind):
            return f"∂e/∂{name} = {'' if pair.uses == 1 else 'Σₜ '}{words}"
    return f"∂e/∂{name} from its {type(pair).__name__}"
