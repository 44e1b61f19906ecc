"""Worked examples from textbooks, courses and manuals: somebody else's numbers, from inputs to outputs.

What jbp computes in float64, rounded to as many decimals as the source prints, must be what the source prints.
Printed numbers are strings here, since a trailing zero is a digit too. Where a source rounded on its way, the test
says so and compares with what follows from the rounded numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp


def assert_prints(found, printed: str) -> None:
    """Every number of `found`, in order, rounded to the decimals of its place in `printed`, is that number."""
    values, words = np.asarray(found, np.float64).ravel().tolist(), printed.split()
    assert len(values) == len(words), f"{len(values)} numbers, {len(words)} printed"
    rounded = [round(v, len(w.partition(".")[2])) for v, w in zip(values, words, strict=True)]
    assert rounded == [float(w) for w in words], f"{values} instead of {printed}"


def dense(weight, bias):
    """Parameters of a Dense layer; weight[i][o]."""
    return {"weight": jnp.array(weight, float), "bias": jnp.array(bias, float)}


def descend(optimizer, gradient, params, steps=1, state=None):
    """The parameters after each step."""
    state = optimizer.init(params) if state is None else state
    path = []
    for _ in range(steps):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def test_a_number_wrong_in_the_last_printed_digit_is_refused():
    assert_prints(0.298371109, "0.298371109")
    with pytest.raises(AssertionError, match="instead of"):
        assert_prints(0.298371109, "0.298371110")
    with pytest.raises(AssertionError, match="1 numbers, 2 printed"):
        assert_prints(0.5, "0.5 0.5")


class TestMazur:
    """Matt Mazur, "A Step by Step Backpropagation Example", 2015 (mattmazur.com/2015/03/17): every number it prints.

    Two inputs, two hidden and two output neurons, all sigmoid; E = ½ Σ (target − out)². The biases stay as they are.
    """

    net = jbp.serial(jbp.Dense(2), jbp.sigmoid, jbp.Dense(2), jbp.sigmoid)
    loss = jbp.losses.l2_loss
    x, y = jnp.array([[0.05, 0.10]]), jnp.array([[0.01, 0.99]])
    # w1 … w8: w1 and w2 lead to h1, w3 and w4 to h2, w5 and w6 to o1, w7 and w8 to o2.
    start = (dense([[0.15, 0.25], [0.20, 0.30]], [0.35, 0.35]), (), dense([[0.40, 0.50], [0.45, 0.55]], [0.6, 0.6]), ())
    weights_only = ({"weight": True, "bias": False}, (), {"weight": True, "bias": False}, ())

    def test_forward_pass(self):
        output, saved = jbp.forward(self.net, self.start, self.x)
        net_h = saved[0].saved @ self.start[0]["weight"] + self.start[0]["bias"].reshape(1, 2)
        assert_prints(net_h, "0.3775 0.3925")
        assert_prints(saved[2].saved, "0.593269992 0.596884378")
        assert_prints(output, "0.75136507 0.772928465")
        net_o = saved[2].saved @ self.start[2]["weight"] + self.start[2]["bias"].reshape(1, 2)
        assert_prints(net_o, "1.105905967 1.224921404")
        each = [self.loss.value(output[0, k : k + 1], self.y[0, k : k + 1]) for k in range(2)]
        assert_prints(jnp.stack(each), "0.274811083 0.023560026")
        assert_prints(self.loss.value(output[0], self.y[0]), "0.298371109")

    def test_backward_pass(self):
        output, saved = jbp.forward(self.net, self.start, self.x)
        delta = self.loss.delta(output, self.y)
        assert_prints(delta[:, 0], "0.74136507")
        delta_net_o, _ = jbp.backward(jbp.sigmoid, (), saved[3], delta)
        assert_prints(delta_net_o[:, 0], "0.138498562")
        # What each output neuron alone sends back to h1, and their sum.
        upper, parts, upper_saved = jbp.serial(*self.net.layers[2:]), self.start[2:], saved[2:]
        sent = [jbp.backward(upper, parts, upper_saved, delta * jnp.eye(2)[k : k + 1])[0][0, 0] for k in range(2)]
        assert_prints(jnp.stack([sent[0], sent[0] + sent[1]]), "0.055399425 0.036350306")
        # Printed -0.019049119: the page multiplies w7 = ½ by a δ that it had rounded to 9 decimals (½ + ¼ unit).
        assert abs(sent[1] - -0.019049119) <= 0.75e-9
        grads = jbp.contract(jbp.backward(self.net, self.start, saved, delta)[1])
        assert_prints(grads[2]["weight"][0, 0], "0.082167041")
        assert_prints(grads[0]["weight"][0, 0], "0.000438568")

    def test_first_update(self):
        _, grads = jbp.value_and_grad(self.net, self.loss, self.weights_only)(self.start, self.x, self.y)
        (params,) = descend(jbp.optim.sgd(0.5), lambda _: grads, self.start)
        assert_prints(params[0]["weight"].T, "0.149780716 0.19956143 0.24975114 0.29950229")
        assert_prints(params[2]["weight"].T, "0.35891648 0.408666186 0.511301270 0.561370121")

    def test_ten_thousand_updates(self):
        """The post's 0.0000351085 is what the 10,000th step finds, before it updates.

        The other losses and the outputs: the README of a NumPy version of the post ("Neural Network Backpropagation
        Implementation"), tables "Error Progression" and "Detailed Comparison", columns "Parallel".
        """
        # 2000 copies of the one example, five times, one by one: 10,000 steps in few chunks.
        data = (jnp.tile(self.x, (2000, 1)), jnp.tile(self.y, (2000, 1)))
        options = {"epochs": 5, "batch_size": 1, "trainable": self.weights_only}
        run = jbp.fit(self.net, self.loss, jbp.optim.sgd(0.5), data, params=self.start, **options)
        losses = run.step_losses[[0, 1, 4, 9, 99, 999]]
        assert_prints(losses, "0.2983711088 0.2910277737 0.2682327612 0.2288087405 0.0203118271 0.0011157856")
        assert_prints(run.step_losses[9999], "0.0000351085")
        assert_prints(jbp.apply(self.net, run.params, self.x), "0.01591362 0.98406427")

    def test_the_numbers_of_sequential_updates(self):
        """Error 0.291027924 after one update and the outputs after 10,000 come from another rule than the post's text.

        They are reproduced to the last digit when the hidden layer's δ goes through output weights that were updated
        already. `jbp.backward` uses `params` only to carry δ, so that rule is a second call with the new ones.
        """

        def step(params, _):
            output, saved = jbp.forward(self.net, params, self.x)
            delta = self.loss.delta(output, self.y)
            for layer in (2, 0):
                grads = jbp.contract(jbp.backward(self.net, params, saved, delta)[1])
                weight = params[layer]["weight"] - 0.5 * grads[layer]["weight"]
                params = (*params[:layer], {**params[layer], "weight": weight}, *params[layer + 1 :])
            return params, self.loss.value(output[0], self.y[0])

        params, errors = jax.jit(lambda start: jax.lax.scan(step, start, length=10_000))(self.start)
        assert_prints(errors[1], "0.291027924")
        assert_prints(jbp.apply(self.net, params, self.x), "0.015912196 0.984065734")


class TestCS231n:
    """A. Karpathy, J. Johnson, F.-F. Li, Stanford CS231n course notes (cs231n.github.io)."""

    def test_add_and_multiply(self):
        """Notes "Backpropagation, Intuitions", section "Compound expressions": f = (x + y) z at −2, 5, −4."""
        net = jbp.serial(jbp.Dense(1, use_bias=False), jbp.Dense(1, use_bias=False))
        params = ({"weight": jnp.ones((2, 1))}, {"weight": jnp.full((1, 1), -4.0)})
        output, saved = jbp.forward(net, params, jnp.array([[-2.0, 5.0]]))
        delta_x, pairs = jbp.backward(net, params, saved, jnp.ones((1, 1)))
        assert_prints(saved[1].saved, "3")
        assert_prints(output, "-12")
        assert_prints(delta_x, "-4 -4")
        assert_prints(jbp.contract(pairs)[1]["weight"], "3")

    def test_sigmoid_neuron(self):
        """The same notes, section "Modularity: Sigmoid example": the circuit's green and red numbers."""
        net = jbp.serial(jbp.Dense(1), jbp.sigmoid)
        params = (dense([[2], [-3]], [-3]), ())
        output, saved = jbp.forward(net, params, jnp.array([[-1.0, -2.0]]))
        delta_s, _ = jbp.backward(jbp.sigmoid, (), saved[1], jnp.ones((1, 1)))
        delta_x, pairs = jbp.backward(net, params, saved, jnp.ones((1, 1)))
        grads = jbp.contract(pairs)[0]
        assert_prints(output, "0.73")
        assert_prints(delta_s, "0.20")
        assert_prints(delta_x, "0.39 -0.59")
        assert_prints(grads["weight"], "-0.20 -0.39")
        assert_prints(grads["bias"], "0.20")

    def test_softmax_classifier(self):
        """Notes "Linear Classification", section "SVM vs. Softmax", the figure: image, scores and the loss 1.04."""
        weight = np.array([[0.01, -0.05, 0.1, 0.05], [0.7, 0.2, 0.05, 0.16], [0.0, -0.45, -0.2, 0.03]])
        params = dense(weight.T, [0.0, 0.2, -0.3])
        x, y = jnp.array([[-15.0, 22.0, -44.0, 56.0]]), jnp.array([2])
        assert_prints(jbp.apply(jbp.Dense(3), params, x), "-2.85 0.86 0.28")
        fused, grads = jbp.value_and_grad(jbp.Dense(3), jbp.losses.softmax_cross_entropy)(params, x, y)
        assert_prints(fused, "1.04")
        net = jbp.serial(jbp.Dense(3), jbp.softmax)
        unfused, unfused_grads = jbp.value_and_grad(net, jbp.losses.cross_entropy)((params, ()), x, y)
        assert_prints(unfused, "1.04")
        assert_prints(jbp.apply(net, (params, ()), x)[0, 1:], "0.631 0.353")
        for found in (grads, unfused_grads[0]):  # δ = p − [class 2]
            assert_prints(found["bias"][1:], "0.631 -0.647")


class TestSpeechAndLanguageProcessing:
    """D. Jurafsky, J. H. Martin, Speech and Language Processing, 3rd edition draft, chapter 5 (2019 numbering)."""

    def test_sentiment_classifier(self):
        """Equation 5.7."""
        net = jbp.serial(jbp.Dense(1), jbp.sigmoid)
        params = (dense(np.array([[2.5, -5.0, -1.2, 0.5, 2.0, 0.7]]).T, [0.1]), ())
        x = jnp.array([[3, 2, 1, 3, 0, 4.19]])
        assert_prints(jbp.apply(jbp.Dense(1), params[0], x), ".833")
        positive = jbp.apply(net, params, x)
        assert_prints(positive, "0.70")
        assert_prints(1 - positive, "0.30")

    def test_cross_entropy_of_it(self):
        """Section 5.3, after equation 5.12. The book takes the probabilities as .69 and .31; so does the test."""
        probabilities = jnp.array([0.31, 0.69])
        assert_prints(jbp.losses.cross_entropy.value(probabilities, 1), ".37")
        assert_prints(jbp.losses.cross_entropy.value(probabilities, 0), "1.17")
        logit = jnp.log(jnp.array([0.69 / 0.31]))
        assert_prints(jbp.losses.sigmoid_binary_cross_entropy.value(logit, jnp.ones(1)), ".37")
        assert_prints(jbp.losses.sigmoid_binary_cross_entropy.value(logit, jnp.zeros(1)), "1.17")

    def test_one_gradient_step(self):
        """Section 5.4.3, "Working through an example": from zero weights, η = 0.1."""
        x, y, start = jnp.array([[3.0, 2.0]]), jnp.array([[1.0]]), dense([[0], [0]], [0])
        gradient = jbp.value_and_grad(jbp.Dense(1), jbp.losses.sigmoid_binary_cross_entropy)
        _, grads = gradient(start, x, y)
        assert_prints(jnp.append(grads["weight"], grads["bias"]), "-1.5 -1.0 -0.5")
        (params,) = descend(jbp.optim.sgd(0.1), lambda p: gradient(p, x, y)[1], start)
        assert_prints(jnp.append(params["weight"], params["bias"]), ".15 .1 .05")

    def test_softmax(self):
        """Section 5.6, after equation 5.31. Two entries, 0.0067 and 0.0999, are cut there, not rounded."""
        p = jbp.apply(jbp.softmax, (), jnp.array([[0.6, 1.1, -1.5, 1.2, 3.2, -1.1]]))[0]
        assert_prints(jnp.delete(p, jnp.array([2, 3])), "0.055 0.090 0.74 0.010")
        assert_prints(jnp.floor(1000 * p[2:4]) / 1000, "0.006 0.099")


def test_softmax_of_wikipedia():
    """Wikipedia, "Softmax function", section "Example" (the Python session)."""
    a = jnp.array([[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]])
    printed = "0.02364054 0.06426166 0.1746813 0.474833 0.02364054 0.06426166 0.1746813"
    assert_prints(jbp.apply(jbp.softmax, (), a), printed)
    assert_prints(jbp.apply(jbp.softmax, (), a / 10), "0.125 0.138 0.153 0.169 0.125 0.138 0.153")


def test_tanh_neuron_of_karpathy():
    """A. Karpathy, "The spelled-out intro to neural networks and backpropagation: building micrograd", 2022.

    Neural Networks: Zero to Hero, lecture 1, "manual backpropagation example #2: a neuron"; the graph prints %.4f.
    """
    net, params = jbp.serial(jbp.Dense(1), jbp.tanh), (dense([[-3], [1]], [6.8813735870195432]), ())
    output, saved = jbp.forward(net, params, jnp.array([[2.0, 0.0]]))
    delta_x, pairs = jbp.backward(net, params, saved, jnp.ones((1, 1)))
    grads = jbp.contract(pairs)[0]
    assert_prints(output, "0.7071")
    assert_prints(delta_x, "-1.5000 0.5000")
    assert_prints(grads["weight"], "1.0000 0.0000")
    assert_prints(grads["bias"], "0.5000")


def test_derivative_of_tanh_in_autograd():
    """D. Maclaurin, D. Duvenaud, M. Johnson, Autograd, README: the gradient of tanh at 1 in float64.

    All 17 digits are printed, of a value computed as (1 − e⁻²ˣ)/(1 + e⁻²ˣ): the last holds its rounding, so up to
    4 units of eps of the value.
    """
    _, saved = jbp.forward(jbp.tanh, (), jnp.ones((1, 1)))
    slope, _ = jbp.backward(jbp.tanh, (), saved, jnp.ones((1, 1)))
    assert abs(float(slope[0, 0]) - 0.41997434161402603) <= 4 * 2**-52 * 0.42


def test_exclusive_or_with_relu():
    """I. Goodfellow, Y. Bengio, A. Courville, Deep Learning, 2016, section 6.1, equations 6.4 to 6.11."""
    net = jbp.serial(jbp.Dense(2), jbp.relu, jbp.Dense(1))
    params = (dense([[1, 1], [1, 1]], [0, -1]), (), dense([[1], [-2]], [0]))
    x, y = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0], [1.0], [1.0], [0.0]])
    assert_prints(jbp.apply(net.layers[0], params[0], x), "0 -1 1 0 1 0 2 1")
    output, saved = jbp.forward(net, params, x)
    assert_prints(saved[2].saved, "0 0 1 0 1 0 2 1")
    assert_prints(output, "0 1 1 0")
    # "it obtained zero error … at a global minimum of the loss function": nothing pulls at any parameter.
    value, grads = jbp.value_and_grad(net, jbp.losses.mean_squared_error)(params, x, y)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_life_of_a_relu_network():
    """kircerta.com, the post science/neural-network-lifecycle: one full cycle of a 2-2-1 ReLU net.

    Forward pass, loss, error signal and the output layer's gradients are the page's. The hidden layer's follow
    exactly from its numbers: both units are on, so δ = −1.25 (0.5, −0.3) and ∂L/∂W¹ = δ xᵀ.
    """
    net = jbp.serial(jbp.Dense(2), jbp.relu, jbp.Dense(1))
    params = (dense([[0.3, 0.2], [-0.1, 0.4]], [0, 0]), (), dense([[0.5], [-0.3]], [0]))
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([[1.0]])
    output, saved = jbp.forward(net, params, x)
    assert_prints(saved[2].saved, "0.1 1.0")
    assert_prints(output, "-0.25")
    value, grads = jbp.value_and_grad(net, jbp.losses.l2_loss)(params, x, y)
    assert_prints(value, "0.78125")
    assert_prints(jbp.losses.l2_loss.delta(output, y), "-1.25")
    assert_prints(grads[2]["weight"], "-0.125 -1.25")
    assert_prints(grads[2]["bias"], "-1.25")
    assert_prints(grads[0]["weight"], "-0.625 0.375 -1.25 0.75")
    assert_prints(grads[0]["bias"], "-0.625 0.375")


def test_mean_squared_error_of_four_outputs():
    """book-ai.org, Neural Networks, chapter 8 section 2, "Backpropagation Algorithm": the loss and step 1."""
    output, target = jnp.array([0.1, -0.1, -0.05, -0.25]), jnp.array([1.0, 1.0, 0.0, 1.0])
    assert_prints(jbp.losses.mean_squared_error.value(output, target), "0.896")
    assert_prints(jbp.losses.mean_squared_error.delta(output, target), "-0.45 -0.55 -0.025 -0.625")


def test_categorical_cross_entropy_of_keras():
    """Keras manual, tf.keras.losses.CategoricalCrossentropy and its sparse form, "Standalone usage".

    Its mean is over the examples; a sample weight multiplies an example's loss before that mean: wₙ/N.
    """
    probabilities, labels = jnp.array([[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]), jnp.array([1, 2])
    one_hot = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    loss = jbp.losses.cross_entropy
    for target in (labels, one_hot):
        assert_prints(jax.vmap(loss.value)(probabilities, target), "0.0513 2.303")
        for weights, printed in ((None, "1.177"), (jnp.array([0.3, 0.7]) / 2, "0.814"), (jnp.ones(2), "2.354")):
            value, _ = jbp.value_and_grad(jbp.identity, loss)((), probabilities, target, weights=weights)
            assert_prints(value, printed)


class TestDiveIntoDeepLearning:
    """A. Zhang, Z. Lipton, M. Li, A. Smola, Dive into Deep Learning, 2023, section 12.6 "Momentum" (d2l.ai).

    f = 0.1 x₁² + 2 x₂² from (−5, −2), 20 steps. As a net: a weight (x₁, x₂), two inputs e₁ and e₂ of example weights
    0.1 and 2, and the squared error against 0.
    """

    @pytest.mark.parametrize(
        ("rate", "momentum", "printed"),
        [
            (0.4, 0.0, "-0.943467 -0.000073"),
            (0.6, 0.0, "-0.387814 -1673.365109"),
            (0.6, 0.5, "0.007188 0.002553"),
            (0.6, 0.25, "-0.126340 -0.186632"),
        ],
    )
    def test_twenty_steps(self, rate, momentum, printed):
        net = jbp.Dense(1, use_bias=False)
        gradient = jbp.value_and_grad(net, jbp.losses.squared_error)
        data, weights = (jnp.eye(2), jnp.zeros((2, 1))), jnp.array([0.1, 2.0])
        start = {"weight": jnp.array([[-5.0], [-2.0]])}
        path = descend(jbp.optim.sgd(rate, momentum), lambda p: gradient(p, *data, weights=weights)[1], start, 20)
        assert_prints(path[-1]["weight"], printed)


def test_momentum_of_keras():
    """Keras manual, tf.keras.optimizers.SGD, "Usage": w²/2 from 1, η = 0.1; plain, then with momentum 0.9."""
    gradient = jbp.value_and_grad(jbp.Dense(1, use_bias=False), jbp.losses.l2_loss)
    one = jnp.ones((1, 1))

    def path(momentum):
        steps = descend(jbp.optim.sgd(0.1, momentum), lambda p: gradient(p, one, 0 * one)[1], {"weight": one}, 2)
        return [float(p["weight"][0, 0]) for p in steps]

    assert_prints(path(0.0)[0], "0.9")
    first, second = path(0.9)
    assert_prints([1 - first, first - second], "0.1 0.18")


def test_nesterov_step_from_a_given_velocity():
    """prof.lexailabs.com/practice, "Nesterov accelerated gradient", example 1: f′(θ) = θ, θ = 1, v = 0.1.

    η = 0.01, μ = 0.9; the page prints the look-ahead 0.91, v = 0.0991 and θ = 0.9009. There v holds η and θ is the
    point before the look-ahead; jbp keeps the look-ahead itself as parameter and a velocity without η.
    """
    rate, momentum = 0.01, 0.9
    optimizer = jbp.optim.sgd(rate, momentum, nesterov=True)
    ahead = jnp.array(1.0 - momentum * 0.1)
    assert_prints(ahead, "0.91")
    state: Any = optimizer.init(ahead)
    state = state._replace(velocity=jnp.array(0.1 / rate))
    updates: Any
    updates, state = optimizer.update(ahead, state, ahead)  # f′ at the look-ahead is the look-ahead
    assert_prints(rate * state.velocity, "0.0991")
    assert_prints(ahead + updates + momentum * rate * state.velocity, "0.9009")
