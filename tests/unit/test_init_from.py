"""The adapter that a fine-tune begins with: what is refused before any work is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import adapter
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import ConfigError
from neuroweaver.settings import Settings
from pipelines.config import load_config
from pipelines.prepare import take_adapter

BASE = BaseModel("tiny", "Tiny", Path("tiny"), "b" * 64)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / adapter.WEIGHTS).write_bytes(b"weights")
    settings = {"r": 16, "lora_alpha": 32, "use_rslora": False, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    adapter.write_manifest(
        folder, model_type="automotive-sales", tasks=("lead-qualification",), base_model="tiny", base_sha256="b" * 64,
        dataset_ids=("ds_0",), job_id="job_0",
    )  # fmt: skip
    return folder


def take(trained: Path, job_folder: Path, *overrides: str, base: BaseModel = BASE) -> None:
    config = load_config(Path("configs/finetune/sales.yaml"), [f"lora.init_from={trained}", *overrides])
    take_adapter(config, Settings(home=job_folder.parent), job_folder, base)


def test_the_adapter_is_copied_into_the_job(trained: Path, tmp_path: Path) -> None:
    take(trained, tmp_path / "job")

    assert (tmp_path / "job" / "init" / adapter.WEIGHTS).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("override", "said"),
    [("lora.alpha=16", "lora.alpha=32, here it is 16"), ("lora.rslora=true", "lora.rslora=False, here it is True"),
     ("lora.dora=true", "lora.dora=False, here it is True")],
)  # fmt: skip
def test_one_whose_weights_would_be_scaled_otherwise_is_refused(
    override: str, said: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"lora.init_from: the adapter was trained with {said}"):
        take(trained, tmp_path / "job", override)
    assert not (tmp_path / "job").exists()


def test_one_of_another_base_model_is_refused(trained: Path, tmp_path: Path) -> None:
    other: Any = BaseModel("other", "Other", Path("other"), "c" * 64)
    with pytest.raises(ConfigError, match="lora.init_from: the adapter was trained on base model tiny"):
        take(trained, tmp_path / "job", base=other)
