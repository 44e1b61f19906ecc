"""What a layer, a loss or a metric answers is looked at in the spine: a wrong form is one line, with the path."""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_close

import jbp
from jbp import curvature, losses, private, stats
from jbp.layer import Layer
from jbp.pairs import Coupled, Outer, Pair, Scale, Shift, Stack, Sum
from jbp.train.in_place import backward_update

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (4, 2)), jnp.ones((4, 3))
x_, d_ = jnp.ones(2), jnp.ones(3)


@dataclass(frozen=True, repr=False)
class Mine(Layer):
    """s = h W + b for one example h [i], as a first author writes it; `how` says what backward answers."""

    how: str = "of"
    width: int = 3

    def init(self, key, shape):
        return {"weight": jax.random.normal(key, (*shape, self.width)), "bias": jnp.zeros(self.width)}, (self.width,)

    def forward(self, params, x, key):
        return x @ params["weight"] + params["bias"], x

    def backward(self, params, saved, delta) -> Any:
        x, d, shape = saved, delta, params["weight"].shape
        bias = Shift.of(d, d.shape)
        answer: Any = {
            "of": lambda: Outer.of(x, d, shape),
            "no t": lambda: Outer(x, d, shape),
            "no t in δ": lambda: Outer(x[None], d, shape),
            "t differs": lambda: Outer(jnp.ones((2, x.size)), d[None], shape),
            "exchanged": lambda: Outer(d[None], x[None], shape),
            "another shape": lambda: Outer(x[None], d[None], shape[::-1]),
            "a list as shape": lambda: Outer(x[None], d[None], list(shape)),  # type: ignore[arg-type]
            "integers": lambda: Outer(x[None], d[None].astype(int), shape),
            "integers in": lambda: Outer(x[None].astype(int), d[None], shape),
            "a number": lambda: Outer(1.0, d[None], shape),  # type: ignore[arg-type]
            "a gain": lambda: Scale(x[None], d[None], shape),
            "an array": lambda: jnp.outer(x, d),
            "None": lambda: None,
            "a stack": lambda: Stack(Outer(x[None, None], d[None, None], shape)),
            "an empty sum": lambda: Sum(()),
            "a sum": lambda: Sum((Outer.of(x, d, shape), Outer(x, d, shape))),
            "coupled": lambda: Coupled(Outer(x, d, shape), "[1]"),
        }.get(self.how, lambda: Outer.of(x, d, shape))()
        pairs: Any = {"weight": answer, "bias": bias}
        if self.how == "an Outer as bias":
            pairs["bias"] = Outer(d[None], d[None], d.shape)
        if self.how == "bias without t":
            pairs["bias"] = Shift(d, d.shape)
        if self.how == "one pair too few":
            del pairs["bias"]
        if self.how == "a tuple of pairs":
            pairs = (pairs["weight"], bias)
        if self.how == "pairs alone":
            return pairs
        delta_x = params["weight"] @ d
        delta_x = {"short δ_x": delta_x[:1], "δ_x of integers": delta_x.astype(int), "no δ_x": None}.get(
            self.how, delta_x
        )
        return delta_x, pairs

    def __repr__(self):
        return f"Mine({self.how!r})"


OUTER = r"Outer of a parameter of shape \(2, 3\) holds h \[t, 2\] and delta \[t, 3\], of floats, but got "
WRONG = {
    "no t": OUTER + r"h float64\[2\] and delta float64\[3\]: Outer\.of\(\.\.\.\) takes arrays without an axis t",
    "no t in δ": OUTER + r"h float64\[1, 2\] and delta float64\[3\]: Outer\.of",
    "t differs": OUTER + r"h float64\[2, 2\] and delta float64\[1, 3\]$",
    "exchanged": OUTER + r"h float64\[1, 3\] and delta float64\[1, 2\]$",
    "another shape": OUTER + r"h float64\[1, 2\] and delta float64\[1, 3\] and shape \(3, 2\)$",
    "a list as shape": OUTER + r".* and shape \[2, 3\]$",
    "integers": OUTER + r"h float64\[1, 2\] and delta int64\[1, 3\]$",
    "integers in": OUTER + r"h int64\[1, 2\] and delta",
    "a number": OUTER + r"h a float and delta",
    "a gain": r"Scale of a parameter of shape \(2, 3\) holds h \[t, 6\] and delta \[t, 6\], of floats, but got h",
    "an array": r"made an array float64\[2, 3\] where a pair such as jbp\.Outer\.of\(.*\) belongs at \['weight'\]$",
    "None": r"pair for each parameter, \['bias'\], \['weight'\], but made \['bias'\]$",
    "a stack": "Stack is what repeat makes",
    "an empty sum": "Sum holds pairs, at least one, but got",
    "a sum": OUTER,
    "coupled": OUTER,
    "an Outer as bias": r"at \['bias'\]: Outer of a parameter of shape \(3,\) holds h \[t, 3\] and delta \[t, 1\]",
    "bias without t": r"at \['bias'\]: Shift of a parameter of shape \(3,\) holds delta \[t, 3\].*Shift\.of",
    "one pair too few": r"pair for each parameter, \['bias'\], \['weight'\], but made \['weight'\]$",
    "a tuple of pairs": r"pair for each parameter, .* but made \[0\], \[1\]$",
    "pairs alone": r"backward must return \(delta_x, pairs\), but returned a dict$",
    "short δ_x": r"made a delta_x of shape \(1,\) for an input of shape \(2,\)$",
    "δ_x of integers": "made a delta_x of int64: it must be of floats$",
}


def grads(net, loss=losses.l2_loss, x=X, y=Y, **more):
    params, _ = net.init(KEY, x.shape[1:])
    return jbp.value_and_grad(net, loss)(params, x, y, **more)


def refused(call, words):
    with pytest.raises(ValueError, match=f"(?m){words}") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_answer_of_backward_is_one_line_with_the_layers_path(how):
    net = jbp.serial(jbp.tanh, jbp.serial(Mine(how)))
    message = refused(lambda: grads(net), WRONG[how])
    assert message.startswith(f"layer [1][0]: Mine({how!r}).backward"), message


def test_the_right_answer_passes_and_is_the_gradient_of_dense():
    params, _ = Mine().init(KEY, (2,))
    mine, dense = (jbp.value_and_grad(net, losses.l2_loss)(params, X, Y) for net in (Mine(), jbp.Dense(3)))
    assert_close(mine, dense, "layer")


SQUARE = Mine("no t", 2)
IN_NETS = {
    "tied": jbp.tied(jbp.serial(SQUARE, jbp.relu, SQUARE), {2: 0}),
    "repeat": jbp.repeat(SQUARE, 3),
    "residual": jbp.residual(SQUARE),
    "branch": jbp.branch(jbp.relu, SQUARE),
}


@pytest.mark.parametrize("name", IN_NETS)
def test_it_is_refused_in_every_combinator(name):
    place = {"tied": "layer [2]: ", "branch": "layer [1]: "}.get(name, "")
    assert refused(lambda: grads(IN_NETS[name], y=X), "takes arrays without an axis t").startswith(
        f"{place}Mine('no t')"
    )


def in_place(net, params):
    optimizer = jbp.optim.sgd(0.1)
    output, saved = jbp.forward(net, params, X)
    return backward_update(net, params, optimizer.init(params), saved, output, optimizer)


DOORS = {
    "backward": lambda net, p: jbp.backward(net, p, jbp.forward(net, p, X)[1], Y),
    "value_and_pairs": lambda net, p: jbp.value_and_pairs(net, losses.l2_loss, p, X, Y),
    "fit": lambda net, p: jbp.fit(net, losses.l2_loss, jbp.optim.sgd(0.1), (X, Y), batch_size=4, epochs=1),
    "in place": in_place,
    "rule": lambda net, p: jbp.fit(
        net, losses.l2_loss, jbp.optim.sgd(0.1), (X, Y), batch_size=4, rule="feedback_alignment"
    ),
    "clipped_sum": lambda net, p: private.clipped_sum(net, losses.l2_loss, p, X, Y, 1.0),
    "gauss_newton_diagonal": lambda net, p: curvature.gauss_newton_diagonal(net, losses.l2_loss, p, X, Y),
    "kronecker_factors": lambda net, p: curvature.kronecker_factors(net, losses.l2_loss, p, X, Y),
    "hessian_product": lambda net, p: curvature.hessian_product(net, losses.l2_loss, p, X, Y)(p),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_the_same_line(door):
    net = jbp.serial(jbp.tanh, Mine("no t"))
    params, _ = net.init(KEY, (2,))
    message = refused(lambda: DOORS[door](net, params), WRONG["no t"])
    assert message.startswith("layer [1]: Mine('no t').backward, at ['weight']: Outer of a parameter")


def test_check_layer_says_the_same():
    report = jbp.check.layer(Mine("no t"), (2,), differences=False)
    (entry, *_) = report.failures
    assert (entry.law, entry.path) == ("tree", "params['weight']")
    assert "Outer of a parameter of shape (2, 3) holds h [t, 2] and delta [t, 3]" in entry.note
    assert "Outer.of(...) takes arrays without an axis t" in entry.note


BY_HAND: dict[str, tuple[Any, str]] = {
    "no n": (Outer(X, Y, (2, 3)), r"pairs: Outer of .* holds h \[n, t, 2\] and delta \[n, t, 3\].*Outer\.of"),
    "no n or t": ({"w": Shift(d_, (3,))}, r"pairs\['w'\]: Shift of .* holds delta \[n, t, 3\]"),
    "other examples": (Outer(X[:3, None], Y[:, None], (2, 3)), r"h float64\[3, 1, 2\] and delta float64\[4, 1, 3\]$"),
    "another size": (
        Outer(X[:, None], Y[:, None], (2, 2)),
        r"shape \(2, 2\) holds h \[n, t, 2\] and delta \[n, t, 2\]",
    ),
    "no l": (Stack(Outer(X[:, None], Y[:, None], (2, 3))), r"holds h \[l, n, t, 2\] and delta \[l, n, t, 3\]"),
    "a stack of arrays": (Stack(X), "Stack holds a pair, but got a Array"),  # type: ignore[arg-type]
    "a sum of two shapes": (
        Sum((Shift(Y[:, None], (3,)), Shift(X[:, None], (2,)))),
        r"Shift of a parameter of shape \(3,\).* and shape \(2,\)",
    ),
    "an array": ((X,), r"takes the pairs that jbp\.backward returns, but found an array float64\[4, 2\] at pairs\[0\]"),
}
READ: dict[str, Any] = {
    "contract": jbp.contract,
    "second_moment": stats.second_moment,
    "norms": stats.norms,
    "kronecker": stats.kronecker,
    "per_example": stats.per_example,
    "gram": stats.gram,
    "variance": stats.variance,
    "records": stats.records,
    "clipped": lambda pairs: stats.clipped(pairs, 1.0),
    "explain": stats.explain,
}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("what", BY_HAND)
def test_pairs_made_by_hand_are_looked_at_by_whoever_reads_them(what, read):
    pairs, words = BY_HAND[what]
    refused(lambda: READ[read](pairs), words)


def test_what_once_came_out_in_silence():
    """Kronecker factors 1/64 of the right ones, a second moment of a mean: of a pair without t nothing is told."""
    h, delta = jnp.ones((4, 8)), jnp.ones((4, 8))
    right = stats.kronecker(Outer(h[:, None], delta[:, None], (8, 8)))
    np.testing.assert_allclose(right.a, np.ones((8, 8)))
    refused(lambda: stats.kronecker(Outer(h, delta, (8, 8))), r"h \[n, t, 8\]")
    refused(lambda: stats.second_moment(Shift(delta, (8,))), r"delta \[n, t, 8\]")


def test_an_answer_on_shapes_is_asked_of_every_class_of_pair():
    assert "check" in Pair.__abstractmethods__
    for kind in (Outer, Shift, Scale, Sum, Stack, Coupled):
        assert not inspect.isabstract(kind)


@dataclass(frozen=True, repr=False)
class Odd(Layer):
    """A layer without parameters whose forward answers what `how` says."""

    how: str

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key) -> Any:
        return {
            "y alone": x,
            "three things": (x, x, x),
            "two outputs": ((x, x), x),
            "no output": (None, x),
            "text in saved": (x, {"what": "text"}),
            "a function in saved": (x, (x, jnp.tanh)),
        }[self.how]

    def backward(self, params, saved, delta):
        return delta, ()


@dataclass(frozen=True, repr=False)
class Unready(Odd):
    """A layer whose init answers what `how` says."""

    def init(self, key, shape) -> Any:
        return {"parameters alone": {"weight": X}, "no shape": (X, None), "three things": (X, shape, shape)}[self.how]


@pytest.mark.parametrize("how", ["parameters alone", "no shape", "three things"])
def test_a_wrong_answer_of_init_is_one_line_with_the_layers_path(how):
    words = r"init must return \(params, out_shape\), but returned a (dict|tuple of [23]: \(an array .*\))$"
    layer = Unready(how)
    for net in (jbp.residual(layer), jbp.branch(layer), jbp.repeat(layer, 2), jbp.tied(layer, {1: 0}), layer):
        message = refused(lambda net=net: jbp.serial(jbp.tanh, net).init(KEY, (2,)), words)
        assert message.startswith("layer [1]"), message
    problem = jbp.Problem(layer, losses.l2_loss, jbp.optim.sgd(0.1))
    refused(lambda: jbp.init_state(problem, (2,)), words)


ODD = {
    "y alone": r"forward must return \(y, saved\), but returned an array float64\[2\]",
    "three things": r"forward must return \(y, saved\), but returned a tuple of 3: \(an array",
    "two outputs": r"the y of .*forward must be one array, but is a tuple of 2",
    "no output": r"the y of .*forward must be one array, but is None",
    "text in saved": r"saved\['what'\] is a str: a static fact rides in it as jbp\.layer\.Static",
    "a function in saved": r"saved\[1\] is a \w+: a static fact",
}


@pytest.mark.parametrize("how", ODD)
def test_a_wrong_answer_of_forward_is_one_line_with_the_layers_path(how):
    net = jbp.serial(jbp.tanh, Odd(how))
    message = refused(lambda: jbp.apply(net, ((), ()), X), ODD[how])
    assert message.startswith("layer [1]: ") and "Odd(" in message


@dataclass(frozen=True)
class Whole(Layer):
    """Couples the examples, and forgets the axis n in what it answers."""

    forgets: str
    couples_batch = True

    def init(self, key, shape):
        return {"bias": jnp.zeros(shape)}, shape

    def forward(self, params, x, key, weights):  # type: ignore[override]
        return (x.mean(0) if self.forgets == "y" else x + params["bias"][None] - x.mean(0)[None]), x

    def backward(self, params, saved, delta):
        pair = Shift(delta if self.forgets == "t" else delta[:, None], params["bias"].shape)
        return delta - delta.mean(0)[None], {"bias": pair}


def test_a_layer_that_takes_the_whole_batch_is_looked_at_too():
    refused(lambda: grads(Whole("y"), y=X), r"must be \[n, \.\.\.\] for the 4 examples, but is an array float64\[2\]")
    refused(
        lambda: grads(Whole("t"), y=X), r"Shift of .* holds delta \[n, t, 2\].*got delta float64\[4, 2\]: Shift\.of"
    )
    grads(Whole(""), y=X)


@dataclass(frozen=True, repr=False)
class Fixed(Layer):
    """y = 2x without a δ_x."""

    def init(self, key, shape):
        return (), shape

    def forward(self, params, x, key):
        return 2 * x, ()

    def backward(self, params, saved, delta):
        return None, ()


def test_a_delta_x_that_is_none_is_refused_where_something_below_needs_it():
    """Before, `residual` and `branch` went on without that path's part, to a wrong gradient."""
    dense = jbp.Dense(2)
    for inner in (Fixed(), jbp.residual(Fixed()), jbp.branch(jbp.tanh, Fixed())):
        message = refused(lambda inner=inner: grads(jbp.serial(dense, inner), y=X), "a layer above it answers None for")
        assert message.startswith("layer [0]: no δ reaches Dense(2")
        grads(jbp.serial(inner, dense), y=X)  # nothing below needs it


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (jnp.ones((4, 1)), r"got a δ of shape \(1,\) for an output of shape \(3,\)"),
        (jnp.ones((4, 3), int), "got a δ of int64: it must be of floats"),
        ((Y, Y), "got a δ that is a tuple of 2"),
        (None, "no δ reaches Mine"),
    ],
)
def test_the_delta_at_the_output_is_looked_at_for_layers_of_ones_own_too(delta, words):
    params, _ = Mine().init(KEY, (2,))
    refused(lambda: jbp.backward(Mine(), params, jbp.forward(Mine(), params, X)[1], delta), words)


@dataclass(frozen=True, repr=False)
class OddLoss(losses.Loss):
    """½ Σ (p − y)², but for what `how` says."""

    how: str

    def value(self, output, target):
        square = 0.5 * (output - target) ** 2
        return square if self.how == "value" else square.sum()

    def delta(self, output, target):
        delta = output - target
        return {"sum": delta.sum(), "dtype": delta.astype(jnp.float32), "none": None}.get(self.how, delta)

    def sqrt_hessian(self, output, target):
        return jnp.ones_like(output) if self.how == "root" else jnp.eye(output.size, dtype=output.dtype)


ODD_LOSS = {
    "value": r"the value of odd_loss must be one number for each example, but is an array float64\[3\]",
    "sum": r"the delta of odd_loss must be as the output, an array float64\[3\], but is an array float64\[\]",
    "dtype": r"the delta of odd_loss must be as the output, an array float64\[3\], but is an array float32\[3\]",
    "none": r"the delta of odd_loss must be as the output, .* but is None",
}
NET = jbp.Dense(3)
PARAMS = NET.init(KEY, (2,))[0]
LOSS_DOORS = {
    "value_and_grad": lambda loss: jbp.value_and_grad(NET, loss)(PARAMS, X, Y),
    "value_and_pairs": lambda loss: jbp.value_and_pairs(NET, loss, PARAMS, X, Y),
    "clipped_sum": lambda loss: private.clipped_sum(NET, loss, PARAMS, X, Y, 1.0),
    "trace": lambda loss: jbp.trace(NET, loss, PARAMS, X[0], Y[0]),
    "fit": lambda loss: jbp.fit(NET, loss, jbp.optim.sgd(0.1), (X, Y), batch_size=4, epochs=1),
}


@pytest.mark.parametrize("door", LOSS_DOORS)
@pytest.mark.parametrize("how", ODD_LOSS)
def test_a_loss_of_ones_own_is_looked_at(how, door):
    refused(lambda: LOSS_DOORS[door](OddLoss(how)), ODD_LOSS[how])


def test_a_root_of_the_wrong_rank_is_refused():
    words = r"the sqrt_hessian of odd_loss must be columns \[v, \*shape\] of an output of shape \(3,\), but is .*\[3\]"
    refused(lambda: curvature.gauss_newton_diagonal(NET, OddLoss("root"), PARAMS, X, Y), words)
    refused(lambda: curvature.fisher_product(NET, OddLoss("root"), PARAMS, X, Y)(PARAMS), words)


def test_a_metric_that_is_no_number_is_refused():
    def metric(output, target):
        return output == target

    words = "the metric '?metric'? must be one number for each example, but is an array bool"
    for validation in (None, (X, Y)):
        refused(
            lambda validation=validation: jbp.fit(
                NET, losses.l2_loss, jbp.optim.sgd(0.1), (X, Y), batch_size=4, epochs=1,
                metrics={"metric": metric}, validation_data=validation,
            ),
            words,
        )  # fmt: skip


def test_a_mask_of_another_tree_is_one_line_at_every_door():
    words = r"trainable must start like params, .* but is \(True,\): one bool may stand for a whole subtree"
    net = jbp.serial(jbp.Dense(3), jbp.tanh)
    refused(lambda: jbp.value_and_grad(net, losses.l2_loss, (True,))(net.init(KEY, (2,))[0], X, Y), words)
    for rule in (None, "kolen_pollack"):
        refused(
            lambda rule=rule: jbp.fit(
                net, losses.l2_loss, jbp.optim.sgd(0.1), (X, Y), batch_size=4, trainable=(True,), rule=rule
            ),
            words,
        )


def test_what_was_saved_by_hand_goes_back_too():
    """Of it nothing is known but what the layer looks at itself."""
    params, _ = jbp.Dense(3).init(KEY, (2,))
    delta = jnp.ones((4, 3))
    delta_x, pairs = jbp.backward(jbp.Dense(3), params, X, delta)
    assert_close(delta_x, delta @ params["weight"].T, "layer")
    assert_close(jbp.contract(pairs)["weight"], X.T @ delta / 4, "layer")
