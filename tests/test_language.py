"""A GPT, the text that a net writes, vocabularies, perplexity and bits, and which parameters decay."""

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp.checkpoint import count
from jbp.data import Vocabulary
from jbp.data.vocabulary import read_text
from jbp.language import reach

V, T = 7, 5


def loose(value: Any) -> Any:
    """Where a type checker would notice the mistake."""
    return value


LOSS = jbp.losses.softmax_cross_entropy


def made(net: jbp.Layer, t: int = T) -> Any:
    return net.init(jax.random.key(0), (t,))[0]


def test_the_gpt_of_the_recipe_has_its_parameters():
    """nanoGPT's net for a CPU, on the 65 characters of tiny Shakespeare."""
    assert count(jax.eval_shape(lambda: made(jbp.gpt(65, 64), 64))) == 804_096
    V, T, L, d = 5, 3, 2, 8
    sizes = {
        "tied": V * d + T * d + L * (2 * d + 12 * d * d) + d,
        "untied": 2 * V * d + T * d + L * (2 * d + 12 * d * d) + d,
        "biased": V * d + T * d + L * (4 * d + 12 * d * d + 9 * d) + 2 * d,
    }
    nets = {
        "tied": jbp.gpt(V, T, L, 2, d, dropout=0.1),
        "untied": jbp.gpt(V, T, L, 2, d, tied=False),
        "biased": jbp.gpt(V, T, L, 2, d, bias=True),
    }
    for name, net in nets.items():
        params, shape = net.init(jax.random.key(0), (T,))
        assert count(params) == sizes[name] and shape == (T, V) and reach(net) == T, name
    for wrong in (
        lambda: jbp.gpt(V, T, L, 3, d),
        lambda: jbp.gpt(V, T, 0),
        lambda: jbp.gpt(0, T),
        lambda: jbp.gpt(V, T, dropout=1.0),
    ):
        with pytest.raises(ValueError, match=r"\d"):
            wrong()


@pytest.mark.parametrize("tied", (True, False))
def test_the_gradient_of_a_gpt_is_autodiffs(tied):
    net = jbp.gpt(V, T, 2, 2, 8, tied=tied)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), made(net))
    x, y = (jnp.asarray(rng.integers(0, V, (3, T))) for _ in range(2))

    def by_autodiff(params: Any) -> Any:
        return jax.vmap(LOSS.value)(jbp.apply(net, params, x), y).mean()

    value, grads = jbp.value_and_grad(net, LOSS)(params, x, y)
    wanted, theirs = jax.value_and_grad(by_autodiff)(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-13)
    for ours, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        scale = max(1e-3, float(jnp.abs(other).max()))
        assert float(jnp.abs(ours - other).max()) <= 16 * np.finfo(float).eps * scale


# ── Text that a net writes ───────────────────────────────────────────────────────────────────────────────────────────

NETS = {
    "gpt": jbp.gpt(V, T, 1, 2, 8),
    "rotary": jbp.serial(jbp.Embedding(V, 4), jbp.Dense(12), jbp.Attention(2, rotary=False), jbp.Unembedding(V)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("top_k", (None, 3))
def test_a_text_is_drawn_token_by_token(name, top_k):
    """Against a loop over tokens that hands the net no more than is written; beyond the positions of the net the window
    moves on."""
    net, key = NETS[name], jax.random.key(3)
    params = jax.tree.map(lambda p: 20 * p, made(net))
    start = np.asarray([[1, 4], [6, 0]])
    for temperature in (0.0, 0.7):
        found = jbp.generate(net, params, start, 9, temperature=temperature, top_k=top_k, key=key)
        assert found.shape == (2, 11)
        page = start
        for at in range(2, 11):
            seen = page[:, -(reach(net) or 99) :]
            scores = jbp.apply(net, params, jnp.asarray(seen))[:, -1]
            if top_k:
                scores = jnp.where(scores < jnp.sort(scores)[:, -top_k:][:, :1], -jnp.inf, scores)
            drawn = jnp.argmax(scores, -1)
            if temperature:
                drawn = jax.random.categorical(jax.random.fold_in(key, at), scores / temperature)
            page = np.concatenate([page, np.asarray(drawn)[:, None]], 1)
        np.testing.assert_array_equal(found, page)
    one = jbp.generate(net, params, start[0], 4, temperature=0)
    assert one.shape == (6,) and one.tolist() == jbp.generate(net, params, start, 4, temperature=0)[0].tolist()


def test_one_is_drawn_as_often_as_its_probability_says():
    net = jbp.serial(jbp.Embedding(3, 3))
    params = ({"weight": jnp.log(jnp.asarray([[0.2, 0.5, 0.3]] * 3))},)
    text = np.asarray(jbp.generate(net, params, [0], 6000, key=jax.random.key(0)))[1:]
    shares = np.bincount(text, minlength=3) / len(text)
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=4 * math.sqrt(0.25 / len(text)))
    kept = np.asarray(jbp.generate(net, params, [0], 500, top_k=2, key=jax.random.key(0)))[1:]
    assert set(kept) == {1, 2}


SEES_ALL = jbp.serial(jbp.Embedding(V, 4), jbp.Dense(12), jbp.Attention(2, causal=False), jbp.Unembedding(V))
SEEN = jax.tree.map(lambda p: 20 * p, made(SEES_ALL))
NAN = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), made(NETS["gpt"]))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"tokens": []}, "the prompt is empty"),
        ({"tokens": np.zeros((2, 0), int)}, "the prompt is empty"),
        ({"tokens": "to be"}, "are text: encode it"),
        ({"tokens": [0.5]}, r"whole numbers \[t\] or \[n, t\]"),
        ({"tokens": [0, V]}, f"tokens must be 0…{V - 1}, for the net has {V} outputs, but one is {V}"),
        ({"tokens": [-1, 2]}, "but one is -1"),
        ({"length": 0}, "length"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"top_k": V + 1}, f"top_k must be at most the {V} tokens"),
        ({"top_k": 0}, "top_k"),
        ({"key": None}, "key must come from jax.random.key"),
        ({"net": SEES_ALL, "params": SEEN}, "the net looks ahead.*Attention causal"),
        ({"net": jbp.serial(jbp.Embedding(V, 2), jbp.Flatten(), jbp.Dense(3))}, r"makes scores \[t, k\]"),
        ({"params": NAN}, "not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_with_is_refused_in_one_line(change, said):
    given = {"net": NETS["gpt"], "tokens": [1, 2], "length": 3, "key": jax.random.key(0)} | change
    net, tokens, length = (given.pop(name) for name in ("net", "tokens", "length"))
    params = given.pop("params", None) or made(net)
    with pytest.raises(ValueError, match=said) as caught:
        jbp.generate(net, params, tokens, length, **given)
    assert "\n" not in str(caught.value)


# ── Vocabularies and texts ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ("to be, or not to be\n", "Grüße 😀 \r\n", "x"))
def test_a_vocabulary_numbers_the_characters_of_a_text_in_their_order(text):
    words = Vocabulary.of(text)
    assert words.symbols == tuple(sorted(set(text))) and len(words) == len(set(text))
    tokens = words.encode(text)
    assert tokens.dtype == np.int32 and tokens.tolist() == [words.symbols.index(c) for c in text]
    assert words.decode(tokens) == text and words.decode(jnp.asarray(tokens)) == text
    assert words.encode("").shape == (0,) and words.decode([]) == ""
    assert {words: 1}[Vocabulary(words.symbols)] == 1


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: Vocabulary.of("abc").encode("abxyé"), r"characters that the vocabulary of 3 has not: 'x', 'y', 'é'"),
        (lambda: Vocabulary.of("abc").encode(loose(5)), "a text to encode"),
        (lambda: Vocabulary.of("abc").decode([3]), "tokens must be 0…2, but there are 3…3"),
        (lambda: Vocabulary.of("abc").decode([[1]]), r"tokens \[m\] to decode"),
        (lambda: Vocabulary.of(""), "there is none"),
        (lambda: Vocabulary(("ab",)), "single characters, each once"),
        (lambda: Vocabulary(("a", "a")), "single characters, each once"),
        (lambda: Vocabulary(()), "single characters, each once"),
    ],
)
def test_what_no_vocabulary_is_or_has(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_text_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\nü\n".encode())
    assert read_text(path) == "a\r\nü\n"
    path.write_bytes("\ufeffa".encode())
    assert read_text(path) == "a"
    for content, said in ((b"a\xffb", "a byte that is none, at 1"), (b"", "found an empty file")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_text(path)
    with pytest.raises(ValueError, match=r"b\.txt"):
        read_text(tmp_path / "b.txt")


# ── Perplexity, bits, decay ──────────────────────────────────────────────────────────────────────────────────────────


def test_perplexity_and_bits_are_of_each_text_by_itself():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(3, T, V)), rng.integers(0, V, (3, T))
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    picked = np.take_along_axis(p, y[..., None], -1)[..., 0]
    real = rng.random((3, T)) < 0.7
    for mask in (None, real):
        counts = np.ones((3, T), bool) if mask is None else mask
        bits = [-np.log2(picked[n][counts[n]]).mean() for n in range(3)]
        loss, output = {True: (LOSS, scores), False: (jbp.losses.cross_entropy, p)}[mask is None]
        for metric, wanted in ((jbp.bits_per_token, np.asarray(bits)), (jbp.perplexity, 2.0 ** np.asarray(bits))):
            bound = metric.of(loss)
            assert bound.of(jbp.losses.cross_entropy) is bound
            masks = () if mask is None else (jnp.asarray(mask),)
            found = jax.vmap(bound)(jnp.asarray(output), jnp.asarray(y), *masks)
            np.testing.assert_allclose(found, wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="is of a loss −log p"):
        jbp.bits_per_token.of(jbp.losses.l2_loss)
    with pytest.raises(ValueError, match="say of which loss"):
        jbp.perplexity(jnp.ones(3), jnp.int32(0))


def test_of_bits_the_lowest_are_the_best():
    """As a figure that is watched; of accuracy it is the highest."""
    x, y = jbp.data.windows(np.random.default_rng(0).integers(0, 3, 40), 4)
    net = jbp.serial(jbp.Embedding(3, 3))
    options: dict[str, Any] = {"validation_data": (x, y), "metrics": {"bits": jbp.bits_per_token}, "epochs": 5}
    found = jbp.fit(net, LOSS, jbp.optim.sgd(40.0), (x, y), monitor="validation_bits", restore_best=True, **options)
    best = min(found.history, key=lambda row: row["validation_bits"])
    assert found.best_epoch in (0, best["epoch"]) and best is not max(found.history, key=lambda r: r["validation_bits"])
    assert found.kept["validation_bits"] <= best["validation_bits"]


def test_what_decays_is_told_by_name_or_by_the_class_of_its_pair():
    """Under repeat gains and biases have two axes, and decay no more than elsewhere."""
    net = jbp.gpt(V, T, 2, 2, 8, bias=True, tied=False)
    params = made(net)
    mask = jbp.optim.decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == (path[-1].key == "weight"), path
    flags = zip(*map(jax.tree.leaves, (params, mask)), strict=True)
    assert any(leaf.ndim == 2 and not decays for leaf, decays in flags)
    x = jnp.zeros((2, T), int)
    pairs = jbp.value_and_pairs(net, LOSS, params, x, x)[1]
    by_class = jbp.optim.decay_mask(pairs, kinds=(jbp.Outer,))
    assert jax.tree.structure(by_class) == jax.tree.structure(params)
    for (path, decays), by_name in zip(
        jax.tree_util.tree_leaves_with_path(by_class), jax.tree.leaves(mask), strict=True
    ):
        assert decays == (by_name and path[0].idx > 1), path  # the tables in front, embedding and positions, do not
    with pytest.raises(ValueError, match="takes a tree of pairs"):
        jbp.optim.decay_mask(params, kinds=(jbp.Outer,))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.add_decayed_weights(0.5, jbp.optim.decay_mask)
        zeros = jax.tree.map(jnp.zeros_like, params)
        moved, _ = optimizer.update(zeros, optimizer.init(params), params)
    for update, leaf, decays in zip(*map(jax.tree.leaves, (moved, params, mask)), strict=True):
        np.testing.assert_allclose(update, 0.5 * leaf if decays else 0 * leaf)


def test_the_figures_of_the_page_are_the_saved_ones():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "language.md").read_text()
    parts = json.loads((root / "experiments" / "results" / "gpt.json").read_text())["parts"]
    counted = parts["temporaries"]["rows"]
    for way in {row["way"] for row in counted}:
        rows = [row for row in counted if row["way"] == way]
        cells = [f"{row['product_flops'] / 1e9:.3g}" for row in rows]
        cells += [f"{row['temporary_bytes'] / 1e6:,.0f}" for row in rows]
        assert f"| {way} | {' | '.join(cells)} |" in page
    for row in parts["growth"]["rows"]:
        if "power of t" in row:
            powers = row["power of t"]
            at = next(
                r
                for r in parts["growth"]["rows"]
                if r.get("t") == 4096 and all(r[k] == row[k] for k in ("what", "way"))
            )
            products = f"{at['product_flops'] / 1e9:.1f} | {powers['product_flops']:.2f}"
            assert re.search(rf"{re.escape(products)} \| \d+ \| {at['temporary_bytes'] / 2**20:,.0f} \|", page), row
    losses = [row["validation_loss"] for row in parts["recipe"]["rows"]]
    mean, low, high = (f"{f(losses):.3f}" for f in (statistics.mean, min, max))
    assert f"{mean} nats a character, the mean of three seeds ({low} to {high})" in " ".join(page.split())


def test_the_losses_of_optimisers_that_look_at_single_texts_are_the_saved_ones():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "language.md").read_text()
    rows = json.loads((root / "experiments" / "results" / "per_example_optimizers.json").read_text())["rows"]
    assert len(rows) == 7
    for row in rows:
        held = row["held out"]
        error = statistics.stdev(held) / math.sqrt(len(held))
        assert f"{statistics.mean(held):.3f} ± {2 * error:.3f}" in page, row["kind"]
