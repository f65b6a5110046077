"""The training loop on the tiny base model: exact, repeatable, and honest about failure."""

from __future__ import annotations

import copy
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import set_peft_model_state_dict
from safetensors.torch import save_file

from neuroweaver import base_model
from neuroweaver.errors import ConfigError, TrainingError
from pipelines import finetune, lora, precision
from pipelines.collate import IGNORED, InMemory, batches, learnt_tokens
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example
from pipelines.finetune import Checkpointed, Evaluated, Event, Finished, Started, Stepped, Stopped
from pipelines.precision import Precision

FP32 = Precision(torch.device("cpu"), torch.float32, "a test")
LORA = LoraSection(rank=2, alpha=4, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_model(tiny_base: Path) -> Callable[[], Any]:
    def make() -> Any:
        model, _ = base_model.load(base_model.locate(str(tiny_base), tiny_base))
        return model.requires_grad_(False)

    return make


@pytest.fixture
def new_lively_model(new_model: Callable[[], Any]) -> Callable[[], Any]:
    """As it is made, the model's logits hardly differ whatever LoRA does; those of this one do."""

    def make() -> Any:
        model = new_model()
        model.get_input_embeddings().weight *= 10
        return model

    return make


def examples(count: int, seed: int = 0, prefix: tuple[int, ...] = (1, 50, 51, 52, 53)) -> list[Example]:
    """Random prompts behind `prefix`, random completions with a token here and there that is not learnt."""
    order = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(order.randrange(3, 250) for _ in range(order.randint(low, high)))

    made = []
    for _ in range(count):
        completion = (*tokens(4, 9), 2)
        made.append(Example((*prefix, *tokens(1, 8)), completion, tuple(order.random() < 0.8 for _ in completion)))
    return made


def run(model: Any, folder: Path, training: TrainingSection, **changes: Any) -> Iterator[Event]:
    options: dict[str, Any] = {"config": LORA, "seed": 7, "precision": FP32, "checkpoints": folder} | changes
    train, validation = options.pop("train", examples(10)), options.pop("validation", examples(4, seed=1))
    return finetune.finetune(model, InMemory(train), validation, training=training, **options)


def finished(events: list[Event]) -> Finished:
    (end,) = (event for event in events if isinstance(event, Finished))
    assert events[-1] is end
    return end


def assert_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert found
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def steps_of(events: list[Event]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * value.abs().max().item())


# rsLoRA divides alpha by the root of the rank: 8 / 4 is as strong as 32 / 16, and four times that learns by chance.
BY_HEART: tuple[dict[str, Any], ...] = ({}, {"rslora": True, "alpha": 8}, {"dora": True}, {"dropout": 0.1})


@pytest.mark.parametrize("kind", BY_HEART, ids=str)
def test_the_loss_falls_when_a_few_examples_are_learnt_by_heart(
    kind: dict[str, Any], new_lively_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TrainingSection(
        epochs=200, batch_size=4, learning_rate=0.02, schedule="cosine", eval_steps=20, checkpoint_steps=1000
    )
    rows = examples(4)
    section = LoraSection.model_validate({"rank": 16, "alpha": 32} | kind)
    events = list(run(new_lively_model(), tmp_path, training, train=rows, validation=rows, config=section))

    losses = [event.loss for event in steps_of(events)]
    measured = [event for event in events if isinstance(event, Evaluated)]
    assert len(losses) == 200
    assert losses[0] > 5
    assert losses[-1] < 0.2 * losses[0]
    assert finished(events).best_eval_loss == min(event.eval_loss for event in measured) < 0.2 * losses[0]
    assert measured[-1].accuracy > 0.9


# Ten examples in batches of two: five steps per epoch, ten in all; dropout needs the same random numbers again.
TRAINING = TrainingSection(epochs=2, batch_size=2, learning_rate=0.01, eval_steps=2, checkpoint_steps=3, patience=99)
DROPOUT = LORA.model_copy(update={"dropout": 0.2})


@pytest.fixture
def undisturbed(new_model: Callable[[], Any], tmp_path: Path) -> list[Event]:
    return list(run(new_model(), tmp_path / "undisturbed", TRAINING, config=DROPOUT))


def interrupt(model: Any, folder: Path, step: int) -> None:
    """Train until `step` was made and what follows from it was reported, then stop as a crash would."""
    events = run(model, folder, TRAINING, config=DROPOUT)
    for event in events:
        if isinstance(event, Stepped) and event.step > step:
            break
    events.close()  # type: ignore[attr-defined]


def test_the_events_of_a_run_count_its_steps(undisturbed: list[Event]) -> None:
    steps = steps_of(undisturbed)

    assert [event.step for event in steps] == list(range(1, 11))
    assert {event.total_steps for event in steps} == {10}
    assert steps[-1].epoch == 2
    assert steps[-1].seconds_left == 0
    assert [event.step for event in undisturbed if isinstance(event, Evaluated)] == [2, 4, 6, 8, 10]
    assert [event.step for event in undisturbed if isinstance(event, Checkpointed)] == [3, 6, 9, 10]


@pytest.mark.parametrize(("stop", "resumed_at"), [(2, 1), (3, 4), (5, 4), (8, 7)])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    stop: int, resumed_at: int, undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    interrupt(new_model(), tmp_path / "jobs", stop)

    events = list(run(new_model(), tmp_path / "jobs", TRAINING, config=DROPOUT))

    assert next(event.step for event in events if isinstance(event, Stepped)) == resumed_at
    assert_same_bits(finished(events).weights, finished(undisturbed).weights)
    losses = {event.step: event.loss for event in undisturbed if isinstance(event, Stepped)}
    assert all(losses[event.step] == event.loss for event in events if isinstance(event, Stepped))
    assert finished(events).best_eval_loss == finished(undisturbed).best_eval_loss


def test_a_run_that_is_called_again_after_its_end_trains_no_more(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    again = list(run(new_model(), tmp_path / "undisturbed", TRAINING, config=DROPOUT))

    assert [type(event) for event in again] == [Started, Finished]
    assert_same_bits(finished(again).weights, finished(undisturbed).weights)


@pytest.mark.parametrize("damage", ["truncated", "no marker", "no tensors"])
def test_a_newest_checkpoint_that_is_not_whole_is_ignored(
    damage: str, undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    interrupt(new_model(), tmp_path / "jobs", 7)
    newest = tmp_path / "jobs" / "step-000006"
    tensors = newest / "state.safetensors"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    else:
        (tensors if damage == "no tensors" else newest / "checkpoint.json").unlink()

    events = list(run(new_model(), tmp_path / "jobs", TRAINING, config=DROPOUT))

    assert next(event.step for event in events if isinstance(event, Stepped)) == 4
    assert_same_bits(finished(events).weights, finished(undisturbed).weights)


def test_a_broken_checkpoint_is_replaced_when_its_step_comes_again(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    interrupt(new_model(), tmp_path / "jobs", 7)
    tensors = tmp_path / "jobs" / "step-000006" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])

    interrupt(new_model(), tmp_path / "jobs", 7)
    events = run(new_model(), tmp_path / "jobs", TRAINING, config=DROPOUT)

    started, first = next(events), next(events)
    assert isinstance(started, Started)
    assert isinstance(first, Stepped)
    assert (started.step, first.step) == (6, 7)


def test_only_the_newest_checkpoints_are_kept(undisturbed: list[Event], tmp_path: Path) -> None:
    kept = sorted(path.name for path in (tmp_path / "undisturbed").iterdir())

    assert kept == ["step-000009", "step-000010"]


def test_a_run_keeps_the_weights_of_its_best_step_and_stops_early(new_model: Callable[[], Any], tmp_path: Path) -> None:
    training = TrainingSection(
        epochs=50,
        batch_size=4,
        learning_rate=0.03,
        schedule="constant",
        eval_steps=1,
        patience=3,
        checkpoint_steps=1000,
    )
    validation = examples(4, seed=1)
    model = new_model()
    events = list(run(model, tmp_path, training, train=examples(4), validation=validation))

    end = finished(events)
    assert end.stopped_early
    assert end.step == end.best_step + 3 < 50
    measured = {event.step: event.eval_loss for event in events if isinstance(event, Evaluated)}
    assert end.best_eval_loss == min(measured.values()) == measured[end.best_step]
    base = new_model()
    fresh = lora.add(base, LORA)
    set_peft_model_state_dict(fresh, end.weights)
    loss, accuracy = finetune.evaluate(base, fresh, validation, 4, FP32)
    assert loss == pytest.approx(end.best_eval_loss, rel=1e-6)
    assert 0 <= accuracy <= 1


def test_a_run_whose_time_is_used_up_is_measured_saved_and_not_gone_on_with(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"max_minutes": 1e-9})
    events = list(run(new_model(), tmp_path, training))

    assert [type(event) for event in events] == [Started, Stepped, Evaluated, Checkpointed, Finished]
    end = finished(events)
    assert (end.step, end.best_step, end.out_of_time, end.stopped_early) == (1, 1, True, False)
    again = list(run(new_model(), tmp_path, training))
    assert [type(event) for event in again] == [Started, Finished]
    assert finished(again).out_of_time
    assert_same_bits(finished(again).weights, end.weights)


def test_a_time_budget_that_suffices_changes_nothing(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"max_minutes": 600.0})
    events = list(run(new_model(), tmp_path / "jobs", training, config=DROPOUT))

    assert not finished(events).out_of_time
    assert_same_bits(finished(events).weights, finished(undisturbed).weights)


def test_a_run_that_stopped_early_and_is_called_again_stays_stopped(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TrainingSection(
        epochs=50,
        batch_size=4,
        learning_rate=0.03,
        schedule="constant",
        eval_steps=1,
        patience=3,
        checkpoint_steps=1000,
    )
    first = finished(list(run(new_model(), tmp_path, training, train=examples(4))))

    # As where a worker dies after its last checkpoint, before it has written the adapter.
    again = list(run(new_model(), tmp_path, training, train=examples(4)))

    assert first.stopped_early
    assert steps_of(again) == []
    assert finished(again).step == first.step
    assert_same_bits(finished(again).weights, first.weights)


@pytest.mark.parametrize(("factor", "loss"), [(1e3, r"\d+"), (math.nan, "nan")], ids=["far too large", "no number"])
def test_a_base_model_that_is_worse_than_guessing_is_not_blamed_on_the_learning_rate(
    factor: float, loss: str, new_model: Callable[[], Any], tmp_path: Path
) -> None:
    model = new_model()
    model.get_input_embeddings().weight *= factor

    with pytest.raises(TrainingError, match=rf"loss is {loss}.* at step 1, before any weight was changed: is the base"):
        list(run(model, tmp_path, TRAINING))


@pytest.mark.parametrize("rate", [1e9, 1e20])
def test_a_loss_that_stops_being_a_number_ends_the_run_with_a_reason(
    rate: float, new_lively_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"learning_rate": rate})

    with pytest.raises(
        TrainingError, match=r"loss (became (nan|inf)|rose to .*) at step \d+: lower training.learning_"
    ):
        list(run(new_lively_model(), tmp_path, training))

    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"last_layers": 3}, "lora.last_layers is 3, but the base model has 2 layers"),
        ({"target_modules": ("no_proj",)}, "lora.target_modules don't fit the base model"),
    ],
)
def test_lora_settings_that_do_not_fit_the_model_are_a_config_error(
    change: dict[str, Any], reason: str, new_model: Callable[[], Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        list(run(new_model(), tmp_path, TRAINING, config=LORA.model_copy(update=change)))


def test_nothing_to_train_on_is_said_so(new_model: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="0 batches and 4 validation examples"):
        list(run(new_model(), tmp_path, TRAINING, train=[]))
    with pytest.raises(TrainingError, match="5 batches and 0 validation examples"):
        list(run(new_model(), tmp_path, TRAINING, validation=[]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ],
)
def test_a_schedule_warms_up_and_falls(name: Any, expected: list[float]) -> None:
    training = TRAINING.model_copy(update={"warmup_fraction": 0.2, "schedule": name})

    assert [finetune.schedule(step / 10, 1 / 10, training) for step in range(10)] == pytest.approx(expected)


def test_the_cosine_schedule_is_halfway_down_in_the_middle() -> None:
    training = TRAINING.model_copy(update={"warmup_fraction": 0.0, "schedule": "cosine"})

    assert finetune.schedule(51 / 101, 1 / 101, training) == pytest.approx(0.5)


def own_loss(model: Any, rows: list[Example]) -> torch.Tensor:
    """The mean over learnt tokens by transformers' own loss, row after row: no padding, nothing of ours."""
    total = torch.zeros(())
    for row in rows:
        targets = [token if keep else IGNORED for token, keep in zip(row.completion, row.learnt, strict=True)]
        labels = torch.tensor([[IGNORED] * len(row.prompt) + targets])
        if sum(row.learnt):
            ids = torch.tensor([(*row.prompt, *row.completion)])
            total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * sum(row.learnt)
    return total / learnt_tokens(rows)


def by_hand(model: Any, train: list[Example], size: int, factors: list[float], training: TrainingSection) -> Any:
    """The weights and losses of the textbook's loop: a whole step at once, a learning rate per step."""
    torch.manual_seed(7)
    peft_model = lora.add(model, LORA)
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, betas=(0.9, training.adam_beta2), weight_decay=training.weight_decay, foreach=False
    )
    steps = [rows for epoch in range(training.epochs) for rows in batches(train, size, seed=7, epoch=epoch)]
    losses = []
    for rows, factor in zip(steps, factors, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * factor
        loss = own_loss(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]).norm()
        for weight in weights:
            assert weight.grad is not None
            weight.grad *= min(1.0, training.max_grad_norm / norm.item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return lora.weights(peft_model), losses


# 20 examples, 8 in a step: three steps in an epoch, the last of four examples; six in all.
FLAT = [1.0] * 6
THIRDS = [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]  # a third of warm-up, then down


@pytest.mark.parametrize("sizes", [(8, 1), (4, 2), (3, 3), (1, 8)], ids=lambda sizes: f"{sizes[0]} x {sizes[1]}")
@pytest.mark.parametrize(
    ("change", "factors"),
    [
        pytest.param({}, FLAT, id="as it comes"),
        pytest.param({"max_grad_norm": 1e-7}, FLAT, id="clipped till eps counts"),
        pytest.param({"weight_decay": 5.0}, FLAT, id="weight decay"),
        pytest.param({"adam_beta2": 0.5}, FLAT, id="beta2"),
        pytest.param({"schedule": "linear", "warmup_fraction": 1 / 3}, THIRDS, id="linear with warm-up"),
    ],
)
def test_steps_equal_those_of_the_textbook_however_their_examples_are_divided(
    sizes: tuple[int, int], change: dict[str, Any], factors: list[float], new_lively_model: Callable[[], Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    values = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 0.02, "epochs": 2, "patience": 99}
    training = TrainingSection.model_validate(
        values | {"batch_size": sizes[0], "gradient_accumulation": sizes[1], "eval_steps": 6} | change
    )
    train = examples(20 if sizes != (3, 3) else 22, seed=4)  # 3 x 3 is nine, and the last step has four as well
    wanted, losses = by_hand(new_lively_model(), train, sizes[0] * sizes[1], factors, training)

    events = list(run(new_lively_model(), tmp_path, training, train=train))

    assert [event.loss for event in steps_of(events)] == pytest.approx(losses, rel=1e-4)
    assert [event.learning_rate for event in steps_of(events)] == pytest.approx([0.02 * f for f in factors])
    end = finished(events)
    assert end.best_step == end.step == 6
    assert_close(end.weights, wanted, rtol=2e-3)


def test_every_learnt_token_of_a_step_counts_alike(new_lively_model: Callable[[], Any], tmp_path: Path) -> None:
    """A long and a short completion in passes of their own: the mean of their means would be another loss."""
    long = Example((1, 50), tuple(range(60, 90)), (True,) * 30)
    short = Example((1, 50), (99, 2), (True, False))
    training = TRAINING.model_copy(update={"batch_size": 1, "gradient_accumulation": 2, "epochs": 1})
    means = [own_loss(new_lively_model(), [row]).item() for row in (long, short)]

    (step,) = steps_of(list(run(new_lively_model(), tmp_path, training, train=[long, short])))

    assert step.loss == pytest.approx((30 * means[0] + means[1]) / 31, rel=1e-5)
    assert abs(step.loss - sum(means) / 2) > 0.1


def test_gradient_checkpointing_computes_layers_again_and_gives_the_same_weights(
    new_lively_model: Callable[[], Any], tmp_path: Path
) -> None:
    found, calls = [], []
    for asked in (False, True):
        training = TRAINING.model_copy(update={"gradient_checkpointing": asked})
        model, count = new_lively_model(), [0]

        def counted(*_: Any, count: list[int] = count) -> None:
            count[0] += torch.is_grad_enabled()

        model.model.layers[0].mlp.register_forward_pre_hook(counted)
        found.append(list(run(model, tmp_path / str(asked), training, config=DROPOUT)))
        calls.append(count[0])

    assert calls == [10, 20]
    plain, checkpointed = ([event.loss for event in steps_of(events)] for events in found)
    assert checkpointed == pytest.approx(plain, rel=1e-6)
    assert_close(finished(found[1]).weights, finished(found[0]).weights)


def test_a_model_that_can_not_be_checkpointed_is_a_config_error(
    new_model: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)

    with pytest.raises(ConfigError, match="training.gradient_checkpointing: LlamaForCausalLM can't do it"):
        list(run(model, tmp_path, TRAINING.model_copy(update={"gradient_checkpointing": True})))


def test_a_run_that_is_asked_to_stop_saves_that_step_and_goes_on_with_the_same_bits(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    answers = iter([False, False, False, True])
    events = list(run(new_model(), tmp_path, TRAINING, config=DROPOUT, should_stop=lambda: next(answers)))

    assert events[-2:] == [Checkpointed(4, tmp_path / "step-000004"), Stopped(4)]
    assert len(steps_of(events)) == 4
    again = list(run(new_model(), tmp_path, TRAINING, config=DROPOUT))
    assert [event.step for event in steps_of(again)] == list(range(5, 11))
    assert_same_bits(finished(again).weights, finished(undisturbed).weights)


def test_who_is_asked_to_stop_at_the_end_is_finished(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    answers = iter([*[False] * 9, True])
    events = list(run(new_model(), tmp_path, TRAINING, config=DROPOUT, should_stop=lambda: next(answers)))

    assert_same_bits(finished(events).weights, finished(undisturbed).weights)


@pytest.mark.parametrize("seed", [7, 8])
def test_the_seed_decides_the_weights(
    seed: int, undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    torch.manual_seed(99)  # whatever was drawn before
    found = finished(list(run(new_model(), tmp_path / "again", TRAINING, config=DROPOUT, seed=seed))).weights
    wanted = finished(undisturbed).weights

    if seed == 7:
        assert_same_bits(found, wanted)
    else:
        assert not any(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_run_may_begin_with_the_adapter_of_another(new_lively_model: Callable[[], Any], tmp_path: Path) -> None:
    rows = examples(4)
    training = TrainingSection(epochs=60, batch_size=4, learning_rate=0.02, eval_steps=60)
    first = finished(list(run(new_lively_model(), tmp_path / "a", training, train=rows, validation=rows)))
    init = tmp_path / "init"
    init.mkdir()
    save_file(first.weights, init / "adapter_model.safetensors")

    second = list(run(new_lively_model(), tmp_path / "b", training, train=rows, validation=rows, start_from=init))

    assert steps_of(second)[0].loss == pytest.approx(first.best_eval_loss, rel=1e-4)
    assert first.best_eval_loss < 5 < own_loss(new_lively_model(), rows).item()


def test_the_accuracy_is_the_share_of_learnt_tokens_that_are_likeliest(new_lively_model: Callable[[], Any]) -> None:
    model = new_lively_model()
    rows = examples(6, seed=3)
    with torch.no_grad():  # completions that the model would write itself, but for the first token
        for index, row in enumerate(rows):
            ids = [*row.prompt, row.completion[0]]
            for _ in range(4):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            rows[index] = Example(row.prompt, tuple(ids[len(row.prompt) :]), (True,) * 5)

    loss, accuracy = finetune.evaluate(model, lora.add(model, LORA), rows, 4, FP32)

    assert accuracy == pytest.approx(4 / 5)
    assert loss == pytest.approx(own_loss(model, rows).item(), rel=1e-5)


def test_a_loop_says_how_it_computes(new_model: Callable[[], Any], tmp_path: Path) -> None:
    started = next(run(new_model(), tmp_path, TRAINING))

    # rank 2: q 32 -> 32, v 32 -> 16, down 64 -> 32, in two layers.
    assert started == Started(0, "cpu", "fp32", "a test", True, 2 * 2 * (64 + 48 + 96))


OTHERS = {
    "GPT-2": (True, transformers.GPT2Config(
        vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )),
    "Gemma 2": (False, transformers.Gemma2Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")
@pytest.mark.parametrize(("packs", "config"), OTHERS.values(), ids=OTHERS.keys())
def test_any_causal_language_model_is_trained_packed_where_it_can_be_and_in_padded_rows_elsewhere(
    packs: bool, config: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    rows = examples(4)
    with torch.no_grad():
        wanted = own_loss(model, rows).item()
    training = TrainingSection(epochs=30, batch_size=4, learning_rate=0.05, eval_steps=30)
    section = LoraSection(rank=8, target_modules="all-linear")

    events = list(run(model.requires_grad_(False), tmp_path, training, train=rows, config=section))

    assert isinstance(events[0], Started)
    assert events[0].packed == packs
    losses = [event.loss for event in steps_of(events)]
    assert losses[0] == pytest.approx(wanted, rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_keeps_lora_in_fp32_and_learns_what_fp32_learns(
    new_lively_model: Callable[[], Any], tmp_path: Path
) -> None:
    rows = examples(4)
    training = TrainingSection(epochs=30, batch_size=4, learning_rate=0.02, eval_steps=30)
    bf16 = Precision(torch.device("cpu"), torch.bfloat16, "a test")
    runs = [
        list(run(new_lively_model(), tmp_path / kind.name, training, train=rows, validation=rows, precision=kind))
        for kind in (FP32, bf16)
    ]

    full, half = ([event.loss for event in steps_of(events)] for events in runs)
    assert half != full
    assert half[0] == pytest.approx(full[0], rel=0.02)
    assert half[-1] == pytest.approx(full[-1], rel=0.1)
    assert half[-1] < 0.8 * half[0]
    assert all(value.dtype == torch.float32 for value in finished(runs[1]).weights.values())


def test_the_loop_runs_in_what_this_machine_is_best_at(new_lively_model: Callable[[], Any], tmp_path: Path) -> None:
    """On a GPU with bf16 that is bf16, its checkpoints included; here it may be fp32."""
    chosen = precision.choose("auto")
    options: dict[str, Any] = {"train": examples(4), "validation": examples(4), "precision": chosen}
    training = TrainingSection(epochs=30, batch_size=4, learning_rate=0.02, eval_steps=30, checkpoint_steps=10)
    events = list(run(new_lively_model(), tmp_path, training, **options))
    assert isinstance(events[0], Started)
    assert (events[0].device, events[0].precision) == (str(chosen.device), chosen.name)
    losses = [event.loss for event in steps_of(events)]
    assert losses[-1] < 0.8 * losses[0]

    shutil.rmtree(tmp_path / "step-000030")
    resumed = list(run(new_lively_model(), tmp_path, training, **options))
    assert [event.step for event in steps_of(resumed)] == list(range(21, 31))
    assert steps_of(resumed)[-1].loss == pytest.approx(losses[-1], rel=1e-2)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of PyTorch
def test_compiled_layers_give_the_same_losses(
    new_lively_model: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, with gradients, but not translated to C++: that takes minutes, and is PyTorch's own business."""
    from torch._dynamo.utils import counters

    compiled_in_full = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda layer, **o: compiled_in_full(layer, backend="aot_eager", **o)
    )
    runs = []
    for asked in (False, True):
        counters.clear()
        training = TRAINING.model_copy(update={"compile": asked, "epochs": 1})
        runs.append(list(run(new_lively_model(), tmp_path / str(asked), training)))
        assert bool(counters["stats"]["unique_graphs"]) == asked
        assert not counters["graph_break"]

    plain, compiled = ([event.loss for event in steps_of(events)] for events in runs)
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert_close(finished(runs[1]).weights, finished(runs[0]).weights, rtol=1e-3)
