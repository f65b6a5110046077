"""The README.md of an export: what it is, what it was made from, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LOADING = {
    "peft": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
base = AutoModelForCausalLM.from_pretrained("BASE", dtype="float32")
model = PeftModel.from_pretrained(base, "DIR").eval()
""",
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
""",
    "gguf": """\
llama-server --model DIR/{file} --ctx-size 4096 --temp 0
""",
}


def card(record: Mapping[str, Any], weights: str, model_card: str | None) -> str:
    """In Markdown, with the metadata that model hubs read. `model_card` names the adapter's card, if any."""
    form, base = record["form"], record["baseModel"]
    adapted = "LoRA adapter for" if form == "peft" else "LoRA adapter merged into"
    language = "" if form == "gguf" else "python"
    lines = [
        *_metadata(form, base["name"]),
        f"# {record['model'] or record['modelType']}",
        "",
        f"{adapted} {base['title']}, {record['dtype']}.",
        "",
        f"- job: `{record['jobId']}`",
        f"- base model: `{base['name']}`, SHA-256 of its weights `{base['sha256']}`",
        f"- SHA-256 of the adapter: `{record['adapterSha256']}`",
        "",
        "BASE is the folder of exactly this base model, DIR this one." if form == "peft" else "DIR is this folder.",
        "",
        f"```{language}",
        _LOADING[form].format(file=weights).rstrip(),
        "```",
        "",
        "The user turn is the prompt of a task, its variables filled in; decode greedily within the schema.",
        "",
        "| task | prompt | schema of the answer |",
        "| --- | --- | --- |",
        *(f"| {task['name']} | {_cell(task['prompt'])} | `{task['schema']}` |" for task in record["tasks"]),
    ]
    if model_card:
        lines += ["", f"Data, figures and limits: [{model_card}]({model_card})."]
    return "\n".join(lines) + "\n"


def _metadata(form: str, base: str) -> list[str]:
    library = "peft" if form == "peft" else "transformers"
    hub = [f"base_model: {base.removeprefix('hf:').split('@')[0]}"] if base.startswith("hf:") else []
    named = [] if form == "gguf" else [f"library_name: {library}"]
    return ["---", *named, "pipeline_tag: text-generation", *hub, "---", ""]


def _cell(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"
