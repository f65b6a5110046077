"""The training loop on the tiny base model: exact, repeatable, and honest about failure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from torch.nn.functional import cross_entropy

from neuroweaver import base_model
from neuroweaver.errors import ConfigError, TrainingError
from pipelines import finetune
from pipelines.collate import IGNORED, Example, collate
from pipelines.config import LoraSection, TrainingSection
from pipelines.finetune import Checkpointed, Evaluated, Event, Finished, Stepped

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


def reference_loss(peft_model: Any, rows: list[Example]) -> torch.Tensor:
    """The same loss as the textbook has it: padded, masked, all positions through the output head."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor((*row.prompt, *row.completion))
        mask[i, : len(row)] = 1
        for j, (token, learnt) in enumerate(zip(row.completion, row.learnt, strict=True)):
            if learnt:
                labels[i, len(row.prompt) + j] = token
    logits = peft_model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
        labels[:, 1:].reshape(-1),
        reduction="sum",
        ignore_index=IGNORED,
    )


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(examples(5), id="a shared prefix"),
        pytest.param([*examples(3, prefix=(1, 9)), *examples(3, prefix=(7,))], id="nothing shared"),
        pytest.param(examples(1), id="one row"),
        pytest.param([examples(1)[0]] * 3, id="the same row three times"),
    ],
)
def test_the_loss_and_its_gradients_equal_those_of_the_plain_padded_batch(
    rows: list[Example], new_model: Callable[[], Any]
) -> None:
    peft_model = finetune.add_lora(new_model(), LORA)
    torch.manual_seed(3)
    weights = {name: weight for name, weight in peft_model.named_parameters() if weight.requires_grad}
    for weight in weights.values():
        torch.nn.init.normal_(weight, std=0.3)  # LoRA begins at 0, where half of the gradients are 0 too

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    batch = collate(rows, 0)
    loss, expected = finetune.loss_sum(peft_model, batch), reference_loss(peft_model, rows)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert loss.item() / batch.learnt_tokens > 1
    found, wanted = gradients(loss), gradients(expected)
    assert len(found) == 2 * 3 * 2
    for name, gradient in found.items():
        assert wanted[name].abs().max() > 1e-3
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5 * wanted[name].abs().max().item())


def run(model: Any, folder: Path, training: TrainingSection, **changes: Any) -> Iterator[Event]:
    options: dict[str, Any] = {"train": examples(10), "validation": examples(4, seed=1), "lora": LORA, "seed": 7}
    options |= changes
    return finetune.finetune(
        model, options.pop("train"), options.pop("validation"), training=training, pad=2, checkpoints=folder, **options
    )


def finished(events: list[Event]) -> Finished:
    (end,) = (event for event in events if isinstance(event, Finished))
    assert events[-1] is end
    return end


def assert_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert found
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def test_the_loss_falls_when_a_few_examples_are_learnt_by_heart(new_model: Callable[[], Any], tmp_path: Path) -> None:
    model = new_model()
    model.get_input_embeddings().weight *= 50  # as it is made, its logits hardly differ whatever LoRA does
    training = TrainingSection(
        epochs=80, batch_size=4, learning_rate=0.02, schedule="cosine", eval_steps=20, checkpoint_steps=1000
    )
    rows = examples(4)
    lora = LoraSection(rank=16, alpha=32)
    events = list(run(model, tmp_path, training, train=rows, validation=rows, lora=lora))

    losses = [event.loss for event in events if isinstance(event, Stepped)]
    measured = [event.eval_loss for event in events if isinstance(event, Evaluated)]
    assert len(losses) == 80
    assert losses[0] > 5
    assert losses[-1] < 0.1 * losses[0]
    assert finished(events).best_eval_loss == min(measured) < 0.1 * losses[0]


# Ten examples in batches of two: five steps per epoch, ten in all; dropout needs the same random numbers again.
TRAINING = TrainingSection(epochs=2, batch_size=2, learning_rate=0.01, eval_steps=2, checkpoint_steps=3, patience=99)
DROPOUT = LORA.model_copy(update={"dropout": 0.2})


@pytest.fixture
def undisturbed(new_model: Callable[[], Any], tmp_path: Path) -> list[Event]:
    return list(run(new_model(), tmp_path / "undisturbed", TRAINING, lora=DROPOUT))


def interrupt(model: Any, folder: Path, step: int) -> None:
    """Train until `step` was made and what follows from it was reported, then stop as a crash would."""
    events = run(model, folder, TRAINING, lora=DROPOUT)
    for event in events:
        if isinstance(event, Stepped) and event.step > step:
            break
    events.close()  # type: ignore[attr-defined]


def test_the_events_of_a_run_count_its_steps(undisturbed: list[Event]) -> None:
    steps = [event for event in undisturbed if isinstance(event, Stepped)]

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

    events = list(run(new_model(), tmp_path / "jobs", TRAINING, lora=DROPOUT))

    assert next(event.step for event in events if isinstance(event, Stepped)) == resumed_at
    assert_same_bits(finished(events).weights, finished(undisturbed).weights)
    losses = {event.step: event.loss for event in undisturbed if isinstance(event, Stepped)}
    assert all(losses[event.step] == event.loss for event in events if isinstance(event, Stepped))
    assert finished(events).best_eval_loss == finished(undisturbed).best_eval_loss


def test_a_run_that_is_called_again_after_its_end_trains_no_more(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    again = list(run(new_model(), tmp_path / "undisturbed", TRAINING, lora=DROPOUT))

    assert len(again) == 1
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

    events = list(run(new_model(), tmp_path / "jobs", TRAINING, lora=DROPOUT))

    assert next(event.step for event in events if isinstance(event, Stepped)) == 4
    assert_same_bits(finished(events).weights, finished(undisturbed).weights)


def test_a_broken_checkpoint_is_replaced_when_its_step_comes_again(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    interrupt(new_model(), tmp_path / "jobs", 7)
    tensors = tmp_path / "jobs" / "step-000006" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])

    interrupt(new_model(), tmp_path / "jobs", 7)
    events = run(new_model(), tmp_path / "jobs", TRAINING, lora=DROPOUT)

    first = next(events)
    assert isinstance(first, Stepped)
    assert first.step == 7


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
    fresh = finetune.add_lora(new_model(), LORA)
    set_peft_model_state_dict(fresh, end.weights)
    assert finetune.mean_loss(fresh, validation, 4, 2) == pytest.approx(end.best_eval_loss, rel=1e-6)


def test_a_run_whose_time_is_used_up_is_measured_saved_and_not_gone_on_with(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"max_minutes": 1e-9})
    events = list(run(new_model(), tmp_path, training))

    assert [type(event) for event in events] == [Stepped, Evaluated, Checkpointed, Finished]
    end = finished(events)
    assert (end.step, end.best_step, end.out_of_time, end.stopped_early) == (1, 1, True, False)
    again = list(run(new_model(), tmp_path, training))
    assert len(again) == 1
    assert finished(again).out_of_time
    assert_same_bits(finished(again).weights, end.weights)


def test_a_time_budget_that_suffices_changes_nothing(
    undisturbed: list[Event], new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"max_minutes": 600.0})
    events = list(run(new_model(), tmp_path / "jobs", training, lora=DROPOUT))

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
    assert [event for event in again if isinstance(event, Stepped)] == []
    assert finished(again).step == first.step
    assert_same_bits(finished(again).weights, first.weights)


def test_a_loss_that_stops_being_a_number_ends_the_run_with_a_reason(
    new_model: Callable[[], Any], tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"learning_rate": 1e20, "warmup_fraction": 0.0})

    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step \d+"):
        list(run(new_model(), tmp_path, training))

    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"last_layers": 3}, "lora.last_layers is 3, but the base model has 2 layers"),
        ({"target_modules": ("no_proj",)}, "lora.target_modules don't fit the base model"),
    ],
)
def test_lora_settings_that_do_not_fit_the_model_are_a_config_error(
    lora: dict[str, Any], reason: str, new_model: Callable[[], Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        list(run(new_model(), tmp_path, TRAINING, lora=LORA.model_copy(update=lora)))


def test_only_the_last_layers_are_adapted_where_that_is_asked(new_model: Callable[[], Any]) -> None:
    peft_model = finetune.add_lora(new_model(), LORA.model_copy(update={"last_layers": 1}))

    names = finetune.lora_weights(peft_model)
    assert len(names) == 6
    assert all(".layers.1." in name for name in names)


def test_nothing_to_train_on_is_said_so(new_model: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="0 training and 4 validation examples"):
        list(run(new_model(), tmp_path, TRAINING, train=[]))


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
