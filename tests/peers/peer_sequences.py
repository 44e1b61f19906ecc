"""A GPT against PyTorch's modules on the same weights, in float64; the norms of its examples by Opacus, if there.

Not part of `pytest`: `make peers`. PyTorch runs its own embedding, layer normalisation, linear layers, GELU, scaled dot
product attention, cross entropy and backward pass.
"""

import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpts import drawn, gpt

import jbp
from jbp import stats
from jbp.losses import softmax_cross_entropy as LOSS

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
__test__ = torch is not None

N, T, V, WIDTH, HEADS = 5, 7, 11, 12, 3
KINDS = [{}, {"causal": False}, {"groups": 1}]


class Model:
    """The same net of PyTorch's modules, in the order of jbp's parameters."""

    def __init__(self, params: Any, layers: int, causal: bool = True, groups: int = HEADS):
        nn, self.causal, self.groups = torch.nn, causal, groups
        asked = (HEADS + 2 * groups) * (WIDTH // HEADS)
        self.parts: list[Any] = [nn.Embedding(V, WIDTH), nn.Embedding(T, WIDTH)]
        for _ in range(layers):
            self.parts += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, asked), nn.Linear(WIDTH, WIDTH)]
            self.parts += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)]
        self.parts += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, V, bias=False)]
        self.module = nn.ModuleList(self.parts)
        for part, given in zip(self.parts, in_order(params, layers), strict=True):
            turned = isinstance(part, nn.Linear) and part.bias is not None
            for name, theirs in part.named_parameters():
                ours = np.array(given["scale" if name == "weight" and "scale" in given else name])
                theirs.data = torch.tensor(ours.T.copy() if turned and name == "weight" else ours)

    def __call__(self, x: Any) -> Any:
        at = iter(self.module)
        table, places = next(at), next(at)
        h = table(x) + places(torch.arange(T).expand(len(x), T))
        rest = list(at)
        *blocks, last, back = rest
        for i in range(0, len(blocks), 6):
            norm, asked, out, second, wide, narrow = blocks[i : i + 6]
            h = h + out(self.attention(asked(norm(h))))
            h = h + narrow(torch.nn.functional.gelu(wide(second(h)), approximate="tanh"))
        return back(last(h))

    def attention(self, x: Any) -> Any:
        e = WIDTH // HEADS
        q, k, v = torch.split(x, [WIDTH, self.groups * e, self.groups * e], -1)
        q, k, v = (a.reshape(*a.shape[:2], -1, e).transpose(1, 2) for a in (q, k, v))
        k, v = (a.repeat_interleave(HEADS // self.groups, 1) for a in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y.transpose(1, 2).reshape(x.shape[0], T, WIDTH)

    def gradients(self) -> list[Any]:
        return [
            a.grad.T if a.ndim == 2 and isinstance(part, torch.nn.Linear) and part.bias is not None else a.grad
            for part in self.parts
            for _, a in sorted(part.named_parameters())
        ]


def in_order(params: Any, layers: int) -> list[Any]:
    """jbp's parameters, module by module."""
    table, places, blocks, last, back = params
    found = [table, places]
    for i in range(layers):
        first, second = (jax.tree.map(lambda a, i=i: a[i], part) for part in blocks)
        found += [first[0], first[1], first[3], second[0], second[1], second[3]]
    return [*found, last, back]


def leaves(params: Any, layers: int) -> list[Any]:
    """Bias before weight, as PyTorch's names are sorted."""
    return [a for part in in_order(params, layers) for _, a in sorted(part.items())]


def case(options: Any) -> tuple[Any, ...]:
    torch.set_default_dtype(torch.float64)
    net = gpt(V, T, WIDTH, HEADS, 2, **options)
    return net, *drawn(net, N, T, V)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_value_and_gradients_are_pytorchs(options: Any):
    net, params, x, y = case(options)
    value, grads = jbp.value_and_grad(net, LOSS)(params, x, y)
    model = Model(params, 2, **options)
    theirs = torch.nn.functional.cross_entropy(
        model(torch.tensor(np.array(x))).reshape(-1, V), torch.tensor(np.array(y)).reshape(-1)
    )
    theirs.backward()
    assert abs(float(value) - float(theirs.detach())) <= 64 * 2.0**-52 * abs(float(value))
    for a, b in zip(leaves(grads, 2), model.gradients(), strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=256 * 2.0**-52 * float(b.abs().max()))


@pytest.mark.skipif(not importlib.util.find_spec("opacus"), reason="Opacus is not installed")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # tokens have no gradient
def test_the_norms_of_the_examples_are_opacuss():
    from opacus import GradSampleModule  # type: ignore[import-not-found]

    net, params, x, y = case({})
    norms = stats.norms(jax.jit(lambda *a: jbp.value_and_pairs(net, LOSS, *a))(params, x, y)[1])
    model = Model(params, 2)
    model.module = GradSampleModule(model.module, loss_reduction="sum")
    x, y = (torch.tensor(np.array(a)) for a in (x, y))
    inner = model.module._module
    model.module = inner
    scores = model(x)
    torch.nn.functional.cross_entropy(scores.reshape(-1, V), y.reshape(-1), reduction="sum").div(T).backward()
    squares: Any = sum(a.grad_sample.reshape(N, -1).square().sum(1) for a in inner.parameters())
    np.testing.assert_allclose(norms, squares.sqrt().numpy(), rtol=1e-12)


def test_planted_gradient_is_refused():
    net, params, x, y = case({})
    _, grads = jbp.value_and_grad(net, LOSS)(params, x, y)
    _, others = jbp.value_and_grad(gpt(V, T, WIDTH, HEADS, 2, causal=False), LOSS)(params, x, y)
    gaps = [jnp.abs(a - b).max() for a, b in zip(leaves(grads, 2), leaves(others, 2), strict=True)]
    assert max(gaps) > 1e-3
