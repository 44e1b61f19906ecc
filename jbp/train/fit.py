"""`fit`: the lectures' algorithm: pick examples, forward, backward, update, until it is time to stop.

The steps run in one compiled program (`jbp.train.program`), in chunks of an epoch or of about a second, whichever is
shorter; between chunks signals, callbacks and saving act. The same program runs every chunk, so where the chunks end
changes nothing, not a bit. Mini-batches of 1 (SGD), of K, and of everything (gradient descent) are the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from typing import Any, Literal

import jax
import optax

from jbp import hosts, rules
from jbp import private as privacy
from jbp.accumulation import check_parts
from jbp.arguments import as_bool
from jbp.durable.saver import EVERY, Saver, digest
from jbp.inputs import as_callbacks
from jbp.layer import Layer
from jbp.losses import Loss
from jbp.private import Private
from jbp.rows import Stream
from jbp.sharding import Sharding
from jbp.step import Method, Metric, Problem, State, Transform, init_state, laid_out
from jbp.train.batches import Source, batch_size_of, batch_sizes
from jbp.train.checks import (
    batch_checker,
    check_coupling,
    check_data,
    check_on_bad,
    check_processes,
    method_of,
    on_device,
    refuse_overlap,
    refuse_streamed,
    unless_swapped,
    warn_of_16_bits,
)
from jbp.train.clocks import Chunks, Length
from jbp.train.facts import facts_about, saving_of
from jbp.train.live import training_line
from jbp.train.loop import BLOCK, Loop
from jbp.train.masked import Per, masked, without_mask
from jbp.train.progress import Aim, Progress
from jbp.train.result import Callback, Fit
from jbp.train.streams import opened
from jbp.train.watch import Watch, check_watch
from jbp.train.windowed import marks

Data = tuple[Any, Any] | tuple[Any, Any, Any]


def fit(
    net: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train_data: Data | Stream,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    batch_size: int | None = None,
    validation_data: Data | Stream | None = None,
    params: Any = None,
    seed: int | None = None,
    sampling: Literal["shuffle", "replacement"] = "shuffle",
    weights: Any = None,
    per: Per = "example",
    metrics: Mapping[str, Metric] | None = None,
    trainable: Any = None,
    transform: Transform | None = None,
    rule: rules.Rule | Method | str | None = None,
    private: Private | None = None,
    in_place: bool = False,
    accumulate: int = 1,
    monitor: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool | None = None,
    target: float | None = None,
    chunk_steps: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
    watch: Watch | None = None,
    sharding: Any = None,
    on_bad: Literal["stop", "skip"] = "stop",
    save_to: Any = None,
    save_every: str = EVERY,
    keep: int = 2,
    resume: bool = False,
) -> Fit:
    """Train `net` on `train_data` = (x [n, ...], y [n, ...]), or (x, y, mask [n, t]) of sequences that are padded.

    Data larger than memory are a pair with `jbp.data.Rows`, read a block ahead while it is trained on, to the same
    bits, or a `jbp.data.Stream`, any iterable of batches, taken as they come. Both are looked at as they are read.

    One step draws `batch_size` examples (None: 32, or all of them if there are fewer) and applies `optimizer` (any
    optax transformation, or `jbp.optim`) to their mean gradient. "shuffle" goes through a new permutation each epoch,
    the last batch shorter where n does not divide;
    "replacement" picks each example uniformly anew, ⌈n / batch_size⌉ steps to an epoch. `trainable` as in
    `jbp.value_and_grad`. `rule` is another way back than backpropagation: a rule of `jbp.rules`, the name of one
    with its defaults, such as "feedback_alignment", or a `jbp.Method` of your own. The training figures of a row are
    means over the epoch's steps, taken while the parameters moved and with dropout; the validation figures are in
    evaluation, after the epoch.

    A run is `epochs` long, by default 10; or `steps`, and then a row of the history is of `evaluate_every` of them (by
    default of all), after which the validation data are evaluated: where this says epoch, such a round is meant. How
    often that is changes nothing of what is drawn. Windows over a text (`jbp.data.windows`), of which there is one for
    every token, are trained on so.

    `weights` [n], one number ≥ 0 for each training example, make it minimise Σ wₙeₙ/Σ wₙ over all of them: a step's
    gradient is Σ wₙgₙ/(B·w̄), with B the examples it draws and w̄ the mean weight of all n, so that weights count alike
    in batches of any size, of 1 too. The training figures of a row are weighted means; in validation every example
    counts once. `transform(x, key)` is done to ONE example before the net sees it, inside the compiled step: to every
    example in evaluation too, then with `key` None, so that conversion is done there and augmentation, which draws, is
    not.

    Of data with a mask, True where a position is real, each example is as if it were cut to its length, whatever stands
    behind; a real position keeps its place if there is padding before it. Its loss is the mean over its positions, and
    a step's the mean over its examples; with `per` "token" it is the mean over the tokens of its batch, and all
    figures, of validation too, are means over tokens. A perplexity is one of each example.

    `in_place` updates each layer inside the backward pass, for `jbp.optim`'s own optimisers: the same parameters, and
    under `repeat` much less memory, because the gradient of a deep stack is never whole.

    With `accumulate` each step goes through its batch in so many parts, at most `batch_size`, one after another: the
    same run, to rounding, with the activations of one part in memory.

    `watch`, such as `jbp.Watch(every=100)`, looks at every hundredth step from inside: h and δ of each layer, the size
    of its update, saturated units, the noise of the gradient. The rows are `Fit.watched`, and callbacks get each.

    `private` clips each example's gradient and adds noise (`jbp.Private`, which says what is protected, and what is
    not: the training figures). Then every example enters each batch independently, `batch_size` of them on average and
    ⌈n / batch_size⌉ steps to an epoch, rows have "epsilon", and nothing may stop the run or choose its parameters by a
    figure; data that were standardised by their own mean and deviation are refused. The validation data are not
    protected.

    `monitor` names the figure that decides: by default "validation_loss", without validation data "train_loss"; of a
    metric higher is better. Training stops when it has not improved by more than `min_delta` for `patience` epochs,
    or has reached `target`. The parameters returned are the best epoch's if `restore_best` (by default, when
    `patience` is given), else the last.

    With `sharding`, a `jbp.Sharding` or a mesh as `jax.make_mesh` makes it, the work is divided: each device is handed
    its rows of every batch, a block ahead, and a step adds up over the devices once; of the validation data each has
    its part. The numbers are those of one device to the order of summation, and what is drawn is the same. The
    parameters that come out are spread over the mesh. Without it data and parameters may lie on a mesh too, and the
    numbers are right, but each step draws from all the examples, wherever they lie, so nothing is faster for it.

    Everything random (initial parameters, order, dropout, noise) follows from `seed`, by default 0, for a private run
    from the operating system: same arguments, same machine, same bits. `chunk_steps` (by default an epoch, or about a
    second's work if that is shorter) changes none of them. Each of the `callbacks` gets an `Event` after every chunk,
    and ends the run by returning True. `progress` tells on standard error how it goes: in a terminal or notebook a line
    that is written anew, in a log a line now and then.

    Where a loss is no longer finite, the run ends as `Diverged`. Before that its steps are taken again, from the last
    checkpoint or from the start, without the callbacks, to find the first number that was not finite: `Diverged.place`
    names its layer, direction, example and row, and with `save_to` the batch is kept there as bad_batch.npz. A private
    run ends where a parameter is no longer finite, whatever the losses are, and names nothing, for that would tell of
    an example. With `on_bad` "skip" a step whose loss is not finite, or that leaves a parameter so, is as if it had not
    been taken: its loss is NaN, `Fit.skipped_steps` counts it, a warning says so at the end. It costs a copy of the
    state, which is kept until a step is known to be sound.

    With a folder `save_to` the run is saved there on the way, `save_every` "60s", "500steps" or "1epoch", and at the
    end, and on Ctrl-C and SIGTERM; the last `keep` checkpoints stay. With `resume` it goes on from the newest that is
    whole, or begins if there is none: the same bits as if it had never stopped, on a machine with as many cores. All
    arguments must be those of before, but `epochs` may be more, and what only shows the run may differ. It needs
    orbax-checkpoint: pip install 'jbp[durable]'. Of a private run without a seed a checkpoint holds the secret key, is
    readable to its owner only, and the last has it no more.

    Parameters of 16 bits train, with a warning: steps that are small beside a parameter are lost in its rounding.

    Raises:
        ValueError: for arguments that do not fit together, saying what to do; for a checkpoint that is damaged, or of
            another run.
        OSError: if a checkpoint cannot be written; those before are as they were.
        ModuleNotFoundError: for `save_to` without orbax-checkpoint.
        Diverged: when the loss is no longer finite; of a private run, a parameter.
        jbp.train.BadBatch: a ValueError, for a batch of streamed data that cannot be read, or not be trained on.
        Interrupted: on Ctrl-C or SIGTERM, when the chunk ends; a second one does not wait. While the program is still
            being compiled there is nothing to keep, and it is a plain KeyboardInterrupt, once that is done.
    """
    length, callbacks = Length.of(epochs, steps, evaluate_every), as_callbacks(callbacks)
    (train_data, mask), (validation_data, held_mask) = (
        without_mask(name, data)
        for name, data in (("train_data", train_data), ("validation_data", validation_data))
    )  # fmt: skip
    told = {"sharding": sharding, "transform": transform, "weights": weights, "private": private}
    masks = masked(per, net, mask, held_mask, **told)
    line = training_line(as_bool(progress, "progress") and hosts.is_first(), length)
    aims = {"monitor": monitor, "patience": patience, "target": target, "restore_best": restore_best}
    check_on_bad(on_bad, private is not None, in_place)
    if private is not None:
        privacy.check_fit(private, net, sampling=sampling, weights=weights, **aims)
        refuse_streamed("train_data", train_data)
        refuse_overlap(train_data)
    stream, held_out = opened("train_data", train_data), opened("validation_data", validation_data)
    mesh = Sharding.of(sharding)
    check_processes(mesh, watch)
    data: Any = on_device("train_data", train_data, mesh is not None) if stream is None else stream.shapes
    validation: Any = None
    if validation_data is not None:
        validation = held_out.shapes if held_out else on_device("validation_data", validation_data, mesh is not None)
    batch_size = batch_size_of(batch_size, len(data[0])) if stream is None else stream.batch_size(batch_size)
    method = method_of(rule, private, in_place, batch_size)
    problem = Problem(net, loss, optimizer, trainable=trainable, method=method, metrics=metrics, transform=transform)
    accumulate, watch = check_parts(problem, accumulate, batch_size), check_watch(watch, private is not None)
    if private is not None:
        for name, values in zip(("x of train_data", "y of train_data"), train_data, strict=True):
            privacy.refuse_own_statistics(name, values)
    example = jax.ShapeDtypeStruct(data[0].shape[1:], data[0].dtype)
    if mesh is not None and private is None:
        mesh.check_rows(batch_size, "batch_size")

    def begin() -> State:
        state = init_state(problem, example, seed=seed, params=params)
        if private is not None and seed is None:
            state = hosts.from_first(state)  # the secret of one
        return state if mesh is None else laid_out(state, problem, mesh)

    run = Loop(
        length, len(data[0]), batch_size, private, accumulate, watch,
        skips=on_bad == "skip", begin=begin, say=None if line is None else line.say, sharding=mesh,
        per_token=masks.per_token,
    )  # fmt: skip
    if stream is None:
        source: Source = run.source(data, sampling, weights, masks)
    else:
        source = stream.source(batch_size, sampling, weights, length, mesh)
    names = [name for name, _ in problem.metrics]
    aim = Aim.over(problem.metrics, validation is not None, min_delta=min_delta, **aims)
    chunks = Chunks(len(source.sizes), chunk_steps, None if watch is None else watch.every, source.block)
    with unless_swapped(problem, params, data):
        state = begin()
        if stream is None:
            check_data("train_data", problem, state.params, data, train_data, weights, mask)
        else:
            stream.check = batch_checker(problem, state.params, data, stream.usual)
    evaluated = validation if held_mask is None else (*validation, held_mask)
    if held_out is None:
        check_data("validation_data", problem, state.params, validation, validation_data, mask=held_mask)
    else:
        held_out.check = batch_checker(problem, state.params, validation)
        evaluated = held_out.evaluation(problem, BLOCK, mesh)
    sizes = source.sizes if length.every is None else batch_sizes(len(data[0]), batch_size, sampling)
    check_coupling(problem, state.params, data[0], sizes)
    warn_of_16_bits(problem, state.params)
    blank = Progress(aim, tuple(names), tuple(source.sizes.tolist()))
    saver, saving = None, saving_of(save_to, save_every, keep, resume)
    facts: Any = None
    if saving is not None or hosts.several():
        facts = facts_about(problem, state, data[0]) | {
            "seed": seed, "sampling": sampling, "batch size": batch_size, "accumulate": run.accumulate,
            "epochs": None if private is None else run.epochs, "aim": repr(aim),
            "data": digest((marks(data), *masks.marks) if stream is None else stream.marks()),
            "weights": digest(weights),
            "validation data": digest(marks(validation) if held_out is None else held_out.marks()),
            "params": digest(params), "evaluate_every": length.every,
        }  # fmt: skip
        run_as = {
            "epochs": run.epochs,
            "chunk_steps": chunk_steps,
            "sharding": repr(mesh),
            "saving": saving is not None,
        }
        hosts.check_same(facts | run_as)
    if saving is not None:
        saver = Saver(saving, facts, secret=private is not None and seed is None)
    with line or nullcontext(), saver or nullcontext(), closing(source), mesh.set() if mesh else nullcontext():
        callbacks = (*callbacks, *([line] if line else []))
        return run(problem, state, source, blank, chunks, evaluated, callbacks, saver)
