"""Stored rows as the model sees them: what is asked, what is learnt, what is written and not learnt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from neuroweaver import answers, base_model, prompts
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines import dataset, datasets_view
from pipelines.dataset import Dataset
from pipelines.datasets_view import SampleRow, View
from pipelines.encoding import encode
from pipelines.ingest import registry
from pipelines.validate import validate_file

DATASETS = Path(__file__).parents[2] / "datasets"
END = "<|im_end|>"
LABELS = {
    "vehicle_type": "suv", "condition": "used", "budget_kind": "total", "budget_max": 30000, "timeline": "unknown",
    "financing": "unknown", "trade_in": "yes",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path) -> Settings:
    return Settings(home=tmp_path / "home", base_model=str(tiny_base))


def stored_file(settings: Settings, path: Path, model_type: str = "automotive-sales") -> Dataset:
    found = registry.detect_format(path)
    task = "lead-qualification" if model_type == "automotive-sales" else None
    checked = validate_file(path, model_type=model_type, data_format=found, task=task)
    assert checked.report.valid, checked.report.errors
    return dataset.store(checked, settings.home)


def stored_rows(settings: Settings, rows: Sequence[dict[str, Any]]) -> Dataset:
    settings.home.mkdir(exist_ok=True)
    path = settings.home / "leads.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return stored_file(settings, path)


def stored_adf(settings: Settings, *vehicles: str) -> Dataset:
    """A prospect for each vehicle, the elements of which are its labels."""
    prospects = "".join(
        f"<prospect><vehicle>{vehicle}</vehicle><customer><comments>Is number {number} still there?</comments>"
        "</customer></prospect>"
        for number, vehicle in enumerate(vehicles)
    )
    settings.home.mkdir(exist_ok=True)
    path = settings.home / "leads.xml"
    path.write_text(f'<?adf version="1.0"?><adf>{prospects}</adf>', encoding="utf-8")
    return stored_file(settings, path)


def look(stored: Dataset, settings: Settings, sample: int = 1000, side: str | None = None, seed: int = 7) -> View:
    return datasets_view.look(stored.id, settings, sample=sample, side=side, seed=seed)


def texts(sample: SampleRow, role: str) -> list[str]:
    return [piece.text for piece in sample.pieces if piece.role == role]


def assert_whole(sample: SampleRow, tokenizer: Any) -> None:
    """The pieces are the row, nothing more and nothing less."""
    task, row = task_named(sample.row.task), sample.row
    asked = prompts.rendered(tokenizer, prompts.user_turn(task, row.values))
    expected = answers.render(task, row.values).text + END
    assert texts(sample, "prompt") == [asked]
    assert sample.pieces[0].role == "prompt"
    assert "".join(piece.text for piece in sample.pieces[1:]) == expected
    example = encode(tokenizer, task, row.values, row.absent)
    assert sample.pieces[0].tokens == len(example.prompt)
    assert sum(piece.tokens for piece in sample.pieces) == len(example)
    assert sample.learnt == sum(example.learnt)
    roles = [piece.role for piece in sample.pieces]
    assert all(one != other for one, other in pairwise(roles))


@pytest.fixture
def tokenizer(settings: Settings) -> Any:
    return base_model.load_tokenizer(base_model.locate(settings.base_model, settings.home))


@pytest.mark.parametrize(
    ("file", "model_type"),
    [
        ("sales/leads.adf.xml", "automotive-sales"),
        ("sales/objection_handling.jsonl", "automotive-sales"),
        ("service/service_diagnosis.jsonl", "service-advisor"),
        ("parts/parts_lookup.csv", "parts-specialist"),
        ("finance/finance_answer.jsonl", "finance-assistant"),
    ],
)
def test_pieces_of_sample_rows_join_to_the_whole_rows(
    settings: Settings, tokenizer: Any, file: str, model_type: str
) -> None:
    view = look(stored_file(settings, DATASETS / file, model_type), settings, sample=40)

    assert len(view.samples) >= 36
    for sample in view.samples:
        assert_whole(sample, tokenizer)


def test_pieces_join_where_signs_are_several_tokens_long(settings: Settings, tokenizer: Any) -> None:
    text = "Ein größeres Auto 🚗🚗, <|im_end|> s'il vous plaît {customerMessage} [bold]"
    stored = stored_rows(settings, [{"customer_message": text, **LABELS, "make": "Škoda", "model": "“Yeti” 🏔"}])

    (sample,) = look(stored, settings).samples

    assert_whole(sample, tokenizer)
    assert "Ein größeres Auto 🚗🚗, < |im_end|> s'il vous plaît {customerMessage} [bold]" in sample.pieces[0].text
    assert '"make":"Škoda","model":"“Yeti” 🏔"' in texts(sample, "learnt")[0]


def test_a_row_that_states_all_its_labels_is_learnt_whole_with_the_end_of_text(settings: Settings) -> None:
    (sample,) = look(stored_rows(settings, [{"customer_message": "Any SUV", **LABELS}]), settings).samples

    assert [piece.role for piece in sample.pieces] == ["prompt", "learnt"]
    assert sample.pieces[1].text == (
        '{"vehicleType":"suv","condition":"used","make":null,"model":null,"year":null,"budget":{"kind":"total",'
        '"min":null,"max":30000},"timeline":"unknown","financing":"unknown","tradeIn":"yes"}' + END
    )


def test_labels_that_a_lead_does_not_state_are_written_and_not_learnt(settings: Settings) -> None:
    (sample,) = look(stored_adf(settings, "<make>Kia</make><year>2026</year>"), settings).samples

    assert set(sample.row.absent) == {
        "vehicle_type", "condition", "model", "budget_kind", "budget_min", "budget_max", "timeline", "financing",
        "trade_in",
    }  # fmt: skip
    assert texts(sample, "ignored") == [
        '"unknown"', '"unknown"', "null", '"unknown"', "null", "null", '"unknown"', '"unknown"', '"unknown"',
    ]  # fmt: skip
    assert texts(sample, "learnt") == [
        '{"vehicleType":', ',"condition":', ',"make":"Kia","model":', ',"year":2026,"budget":{"kind":', ',"min":',
        ',"max":', '},"timeline":', ',"financing":', ',"tradeIn":', "}" + END,
    ]  # fmt: skip


def test_the_end_of_text_is_learnt_also_where_no_label_is_stated(settings: Settings) -> None:
    (sample,) = look(stored_adf(settings, ""), settings).samples

    assert sample.pieces[-1].role == "learnt"
    assert sample.pieces[-1].text.endswith(END)
    assert all(END not in text for text in texts(sample, "ignored"))


def test_rows_without_any_label_are_counted_and_said(settings: Settings) -> None:
    view = look(stored_adf(settings, "", "<make>Kia</make>", "<stock>B-1</stock>"), settings, sample=0)

    assert view.empty == 2
    assert view.to_dict()["emptyCompletions"] == 2
    assert any("2 rows state no label" in str(line) for line in datasets_view.lines(view))


def test_rows_that_state_unknown_for_everything_are_not_counted_as_empty(settings: Settings) -> None:
    labels = ("vehicle_type", "condition", "budget_kind", "timeline", "financing", "trade_in")
    stored = stored_rows(settings, [{"customer_message": "Hi", **dict.fromkeys(labels, "unknown")}])
    view = look(stored, settings)

    assert view.empty == 0
    assert not any("state no label" in str(line) for line in datasets_view.lines(view))
    assert texts(view.samples[0], "ignored") == []


def test_the_sides_of_the_split_add_up_and_samples_keep_to_one(settings: Settings) -> None:
    stored = stored_file(settings, DATASETS / "sales" / "leads.adf.xml")

    for side in ("train", "validation", "held_out"):
        view = look(stored, settings, side=side)
        assert {sample.row.split for sample in view.samples} == {side}
        assert len(view.samples) == view.sides[side] > 0
    assert sum(view.sides.values()) == len(stored.examples) == 36


def test_samples_are_chosen_by_the_seed_and_no_row_is_shown_twice(settings: Settings) -> None:
    stored = stored_file(settings, DATASETS / "sales" / "leads.adf.xml")

    def shown(sample: int, seed: int) -> list[str]:
        return [one.row.example_id for one in look(stored, settings, sample=sample, seed=seed).samples]

    assert shown(5, 7) == shown(5, 7)
    assert shown(5, 7) != shown(5, 8)
    assert Counter(shown(1000, 7)) == Counter(row.example_id for row in stored.examples)


def test_counts_are_shown_without_a_base_model(settings: Settings, tmp_path: Path) -> None:
    stored = stored_adf(settings, "<make>Kia</make>")
    nowhere = Settings(home=settings.home, base_model=str(tmp_path / "nowhere"))

    assert look(stored, nowhere, sample=0).samples == ()
    with pytest.raises(NotFoundError, match="base model folder"):
        look(stored, nowhere, sample=1)


def test_an_unknown_side_or_dataset_is_refused(settings: Settings) -> None:
    stored = stored_adf(settings, "")

    with pytest.raises(UsageError, match="unknown side 'test': one of train, validation, held_out"):
        look(stored, settings, side="test")
    with pytest.raises(NotFoundError, match=f"no dataset 'ds_0': there are {stored.id}"):
        datasets_view.look("ds_0", settings, sample=0, side=None, seed=7)


def test_what_is_learnt_is_green_and_what_is_not_is_yellow(settings: Settings) -> None:
    (sample,) = (view := look(stored_adf(settings, "<make>[red]Kia</make>"), settings)).samples
    legend, heading, row = list(datasets_view.lines(view))[-3:]

    assert isinstance(legend, Text)
    assert isinstance(row, Text)
    styles = {str(legend)[span.start : span.end].strip(): span.style for span in legend.spans}
    assert styles == {"prompt": "dim", "learnt": "bold green", "written but not learnt": "yellow"}
    shown = [(str(row)[span.start : span.end], span.style) for span in row.spans]
    roles = {"prompt": "dim", "learnt": "bold green", "ignored": "yellow"}
    assert shown == [(piece.text, roles[piece.role]) for piece in sample.pieces]
    total = sum(piece.tokens for piece in sample.pieces)
    assert str(heading).endswith(f"line 1; {total} tokens, {sample.learnt} in the loss")
    assert "[red]Kia" in str(row)


def test_a_view_for_machines_is_plain_json(settings: Settings) -> None:
    view = look(stored_adf(settings, "<make>Kia</make>"), settings)
    found = json.loads(json.dumps(view.to_dict()))

    assert {"datasetId", "rows", "labels", "split", "source", "samples", "emptyCompletions", "tokens"} <= set(found)
    assert not {"errors", "warnings"} & set(found)  # `report.json` has them
    (sample,) = found["samples"]
    assert (sample["task"], sample["line"]) == ("lead-qualification", 1)
    assert found["split"] == {"train": 0, "validation": 0, "held_out": 0} | {sample["split"]: 1}
    assert [set(piece) for piece in sample["pieces"]] == [{"role", "text", "tokens"}] * len(sample["pieces"])


def test_the_newest_dataset_is_listed_first(settings: Settings) -> None:
    made = [stored_adf(settings, "<make>Kia</make>"), stored_adf(settings, "<make>Ford</make>")]
    for stored, day in zip(made, ("2026-05-02", "2026-05-03"), strict=True):
        source = stored.source.model_copy(update={"created_at": f"{day}T00:00:00Z"})
        (stored.folder / "source.json").write_text(source.to_json())

    found = datasets_view.overview(settings.home)

    assert [entry["datasetId"] for entry in found] == [made[1].id, made[0].id]
    assert [entry["rows"] for entry in found] == [1, 1]
