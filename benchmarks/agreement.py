"""Whether the engine answers as it should: the champion of every role, in int8, in fp32 and by transformers and PEFT.

    neuroweaver bench agreement --save

Labels and names count, free text does not: many wordings are right. The rows are those that each champion's data holds
out, and the messages of benchmarks/quality. Free text in fp32 is compared with `generate` token for token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from neuroweaver import base_model, prompts
from neuroweaver.adapter import ModelRef, read_manifest
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import NotFoundError
from neuroweaver.inference import loading
from neuroweaver.inference.decoding import Decoder, Prompt
from neuroweaver.inference.kernels import Precision
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines import dataset, predict
from pipelines.evaluate import Question, score
from pipelines.released import Answer
from pipelines.scoring import Scorer
from pipelines.tracking import Tracker

QUALITY = Path(__file__).parent / "quality"
_ROWS = 150  # that are held out, at most
_PROMPTS, _TOKENS = 12, 48
RESULTS = Path(__file__).parent / "results"
ROLES = {
    "automotive-sales": ("leads.csv", "lead-qualification"),
    "service-advisor": ("service.jsonl", "service-diagnosis"),
    "parts-specialist": ("parts.csv", "parts-lookup"),
    "finance-assistant": ("finance.jsonl", "finance-answer"),
}


def run(settings: Settings, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """`{role: {model, token_for_token, prompts, held_out, blind}}`, skipping roles that have no champion.

    The last two are `{rows, labels, agreement, fp32, int8}`; accuracies are of the fields.
    """
    tracker = Tracker(settings)
    result: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    asked: dict[str, list[Question]] = {}
    base: BaseModel | None = None
    for role, (file, task) in ROLES.items():
        try:
            version = tracker.resolve(ModelRef(role))
        except NotFoundError:
            say(f"{role}: no champion, left out")
            continue
        manifest = read_manifest(version.folder)
        base = base_model.fetch(manifest.base_model, settings.home)
        blind = predict.read(ModelRef(role), QUALITY / file, task, require_labels=True).rows
        stored = [row for each in manifest.dataset_ids for row in dataset.load(each, settings.home).side("held_out")]
        sets = {
            "held_out": [Question(row.task, row.values, row.absent) for row in dataset.choose(stored, _ROWS)],
            "blind": [Question(row.task, row.values, row.absent) for row in blind],
        }
        folders[role], asked[role] = version.folder, sets["blind"]
        result[role] = {"model": str(version.ref)}
        for name, questions in sets.items():
            found = result[role][name] = _compare(base, settings.home, version.folder, questions)
            say(f"{role}, {name}: {found['agreement']:.2%} of {found['labels']} labels agree")
    if base is not None:
        for role, (same, prompts_) in _token_for_token(base, folders, asked).items():
            result[role] |= {"token_for_token": same, "prompts": prompts_}
            say(f"{role}: {same} of {prompts_} texts are those of PEFT and transformers, token for token")
    return result


def _compare(base: BaseModel, home: Path, folder: Path, questions: Sequence[Question]) -> dict[str, Any]:
    given: dict[Precision, list[Answer]] = {}
    for precision in ("fp32", "int8"):
        scorer = Scorer(base, home, precision=precision)
        scorer.add("model", folder)
        given[precision] = scorer.answers("model", questions)
    same, labels = _same(questions, given["fp32"], given["int8"])
    return {
        "rows": len(questions),
        "labels": labels,
        "agreement": round(same / labels, 4),
        **{name: round(score(questions, answers)["field_accuracy"], 4) for name, answers in given.items()},
    }


def _token_for_token(
    base: BaseModel, folders: dict[str, Path], asked: dict[str, list[Question]]
) -> dict[str, tuple[int, int]]:
    """By role: how many texts that fp32 writes, in one batch of all roles, are those of `generate`, and of how many."""
    runner, tokenizer = loading.load(base, precision="fp32")
    for role, folder in folders.items():
        runner.load(role, folder)
    wanted = [(role, question) for role in folders for question in asked[role][:_PROMPTS]]
    encoded = [
        prompts.encode(tokenizer, prompts.user_turn(task_named(question.task), question.values))
        for _, question in wanted
    ]
    found = Decoder(runner, tokenizer).generate([
        Prompt(tokens, adapter=role, max_tokens=_TOKENS) for (role, _), tokens in zip(wanted, encoded, strict=True)
    ])  # fmt: skip
    same = dict.fromkeys(folders, 0)
    for role, folder in folders.items():
        model: Any = PeftModel.from_pretrained(base_model.load(base)[0], folder).eval()
        for (asker, _), tokens, answer in zip(wanted, encoded, found, strict=True):
            if asker == role:
                same[role] += _generate(model, tokens, int(tokenizer.eos_token_id)) == list(answer.tokens)
    return {role: (same[role], sum(asker == role for asker, _ in wanted)) for role in folders}


@torch.inference_mode()
def _generate(model: Any, tokens: Sequence[int], end: int) -> list[int]:
    ids = torch.tensor([list(tokens)])
    settings: dict[str, Any] = {"max_new_tokens": _TOKENS, "do_sample": False, "pad_token_id": end}
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
    return found[: found.index(end)] if end in found else list(found)


def _same(questions: Sequence[Question], one: Sequence[Answer], other: Sequence[Answer]) -> tuple[int, int]:
    """How many labels two models state alike, of how many."""
    same = labels = 0
    for question, mine, theirs in zip(questions, one, other, strict=True):
        for column in task_named(question.task).labels:
            if not column.is_free_text:
                labels += 1
                same += (mine.labels or {}).get(column.name) == (theirs.labels or {}).get(column.name)
    return same, labels


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| model | rows | | labels | int8 states the same | fields right, fp32 | fields right, int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in result.values():
        for name in ("held_out", "blind"):
            f = found[name]
            lines.append(
                f"| {found['model']} | {name.replace('_', ' ')} | {f['rows']} | {f['labels']} | {f['agreement']:.2%} "
                f"| {f['fp32']:.3f} | {f['int8']:.3f} |"
            )
    lines += [
        "",
        f"Texts of {_TOKENS} tokens in fp32, all roles in one batch, that are those of PEFT and transformers:",
        "",
    ]
    return lines + [
        f"- {found['model']}: {found['token_for_token']} of {found['prompts']}" for found in result.values()
    ]


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/agreement.{json,md}."""
    heading = [
        "# int8 beside fp32, fp32 beside PEFT",
        "",
        "`neuroweaver bench agreement --save`, after `make train-all`.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "agreement.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "agreement.md").write_text("\n".join([*heading, *table(result)]) + "\n", encoding="utf-8")
