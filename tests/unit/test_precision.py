"""Which device and number format a fine-tune computes in: what the hardware is good at, and refusals with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuroweaver.errors import ConfigError
from pipelines import precision


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {"is_available": True, "current_device": 0, "get_device_name": "Some GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    return monkeypatch


def rates(bf16: float) -> Any:
    return lambda dtype: bf16 if dtype == torch.bfloat16 else 100.0


def test_a_cpu_computes_in_fp32_and_nothing_is_measured_unless_bf16_is_asked_for(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(precision, "_cpu_rate", lambda dtype: pytest.fail("measured"))

    for asked in ("auto", "fp32"):
        found = precision.choose(asked)  # type: ignore[arg-type]
        assert (found.device.type, found.dtype, found.name) == ("cpu", torch.float32, "fp32")
    assert precision.choose("fp32").reason == "asked for"
    assert precision.choose("auto").reason == "a CPU"


def test_bf16_is_refused_with_the_ratio_where_it_is_slow(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(precision, "_cpu_rate", rates(bf16=7.0))

    with pytest.raises(
        ConfigError, match=r"bf16 products run at 0\.07 times the rate of fp32 on this CPU; use fp32 or"
    ):
        precision.choose("bf16")


def test_bf16_is_taken_with_the_ratio_where_it_is_fast(cpu: pytest.MonkeyPatch) -> None:
    cpu.setattr(precision, "_cpu_rate", rates(bf16=420.0))

    found = precision.choose("bf16")
    assert (found.device.type, found.dtype, found.name) == ("cpu", torch.bfloat16, "bf16")
    assert found.reason == "asked for; bf16 products run at 4.2 times the rate of fp32"


def test_what_is_measured_are_the_products_of_this_machine(cpu: pytest.MonkeyPatch) -> None:
    """A product of 512 is 512 times the work of one of 64; the rates of something not computed would be alike."""
    small, large = (precision._cpu_rate(torch.float32, size) for size in (64, 512))

    assert small > 10 * large > 0


def test_a_gpu_with_bf16_computes_in_it_unless_fp32_is_asked_for(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)

    for asked, name in (("auto", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
        found = precision.choose(asked)  # type: ignore[arg-type]
        assert (str(found.device), found.name) == ("cuda:0", name)


def test_a_gpu_that_only_emulates_bf16_computes_in_fp32_and_refuses_bf16(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)

    found = precision.choose("auto")
    assert (found.name, found.reason) == ("fp32", "this GPU has no bf16")
    with pytest.raises(ConfigError, match="training.precision: Some GPU has no bf16; use fp32 or auto"):
        precision.choose("bf16")


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_products_of_fp32_lora_weights_are_computed_in_the_chosen_format(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    chosen = precision.Precision(torch.device("cpu"), dtype, "a test")
    with chosen.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == expected
