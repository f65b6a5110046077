"""Fixtures that many tests share: a base model of a few thousand random weights, adapters for it, and stores."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from neuroweaver import memory
from neuroweaver.store import Store

if TYPE_CHECKING:
    import psycopg

memory.spin_briefly()  # before any test imports PyTorch
pytest.register_assert_rewrite(  # what helpers assert is told in full, too
    "tests.e2e.service_process", "tests.integration.bad_uploads", "tests.integration.event_sockets",
    "tests.unit.deployments", "tests.unit.nhtsa",
)  # fmt: skip


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so would all that the tests start from there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


WRITTEN: dict[str, dict[str, Any]] = {
    "lead-qualification": {"vehicle_type": "truck", "condition": "used", "timeline": "within_30d"},
    "objection-handling": {
        "price_response": "It lasts.", "features_response": "It tows.", "value_response": "Call 555-867-5309.",
    },
    "service-diagnosis": {"system": "ENGINE", "severity": "prompt", "causes": ["pads"], "steps": ["look"]},
    "parts-lookup": {"part_name": "brake pad", "position": "front", "quantity": 1},
    "finance-answer": {"topic": "apr", "answer": "It depends.", "escalate_to": "none"},
}  # fmt: skip


class StubEngine:
    """An engine without a model: a right answer to every task at once, `hello` to everything else, or `failure`."""

    def __init__(self) -> None:
        from neuroweaver import adapter, answers
        from neuroweaver.tasks import TASKS

        self.failure: Exception | None = None
        self.loaded: dict[str, Path] = {}
        self._read = adapter.read_manifest
        self._answers = [(answers.schema(task), answers.render(task, WRITTEN[task.name])) for task in TASKS.values()]

    async def submit(self, request: Any) -> Any:
        from serving.engine.protocol import EngineAnswer

        if self.failure is not None:
            raise self.failure
        text = next((answer.text for schema, answer in self._answers if schema == request.schema), "hello")
        return EngineAnswer(text, 0.75, 70, 30, 0.0, 0.001)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        answer = await self.submit(request)
        middle = len(answer.text) // 2
        for piece in (answer.text[:middle], answer.text[middle:], answer):
            yield piece

    def load(self, name: str, folder: Path) -> None:
        self._read(folder)
        self.loaded[name] = folder

    def unload(self, name: str) -> None:
        del self.loaded[name]

    def adapters(self) -> tuple[str, ...]:
        return tuple(self.loaded)

    def stats(self) -> Any:
        from serving.engine.protocol import EngineStats

        return EngineStats(True, *[0] * 19)

    def close(self) -> None:
        pass


@pytest.fixture
def stub_engine() -> StubEngine:
    return StubEngine()


@pytest.fixture(scope="session")
def stub_engines() -> type[StubEngine]:
    """For fixtures that outlive a test."""
    return StubEngine


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers loads: a random Llama of two layers and a byte-level tokenizer with ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_base")
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: index for index, sign in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *signs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.set_num_threads(1)  # threads only get in each other's way with weights this small
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_adapter(tiny_adapters: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`tiny_adapter(model_type, seed)`: the folder of a random adapter for `tiny_base`, with its manifest."""
    return partial(tiny_adapters, tmp_path)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path) -> Callable[..., Path]:
    """`tiny_adapters(parent, model_type, seed)`: the same in `parent`, for fixtures that outlive a test."""

    def make(parent: Path, model_type: str, seed: int = 1) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        from neuroweaver import adapter, base_model
        from neuroweaver.tasks import tasks_of

        base = base_model.locate(str(tiny_base), parent)
        model, _ = base_model.load(base)
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        folder = parent / "adapters" / f"{model_type}-{seed}"
        get_peft_model(model, config).save_pretrained(folder)
        adapter.write_manifest(
            folder,
            model_type=model_type,
            tasks=tuple(task.name for task in tasks_of(model_type)),
            base_model=base.name,
            base_sha256=base.sha256,
            dataset_ids=("ds_0123456789abcdef",),
            job_id=f"job_{seed}",
        )
        return folder

    return make


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """A PostgreSQL of its own in a temporary folder, reached by a socket there; a call gives the URL of an empty schema."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    found = shutil.which("initdb") or next(map(str, programs), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian's package is `postgresql`)")
    initdb = Path(found).resolve()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    user, group = _postgresql_user()
    os.chown(folder, user, group)
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    owned = {"cwd": folder, "env": environment} | (
        {"user": user, "group": group, "extra_groups": []} if not os.getuid() else {}
    )
    subprocess.run(
        [initdb, "--pgdata=data", "--username=neuroweaver", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"],
        check=True, stdout=subprocess.DEVNULL, **owned,
    )  # fmt: skip
    settings = "fsync=off full_page_writes=off autovacuum=off max_connections=200 listen_addresses="
    options = " ".join(f"-c {setting}" for setting in settings.split())
    # It ends with this process, however that ends: then the pipe is closed.
    script = f"{initdb.with_name('postgres')} -D data -k {folder} {options} 2>log & read -r _; kill -QUIT $!; wait"
    server = subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **owned)
    try:
        with _connected(folder, server) as connection:
            numbers = count(1)

            def make() -> str:
                schema = f"store_{next(numbers)}"  # made much faster than a database
                connection.execute(f"CREATE SCHEMA {schema}")
                return f"postgresql://neuroweaver@/postgres?host={folder}&options=-csearch_path%3D{schema}"

            yield make
    finally:
        server.communicate(timeout=60)
        shutil.rmtree(folder)


def _connected(folder: Path, server: subprocess.Popen[bytes]) -> psycopg.Connection[Any]:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            return psycopg.connect(host=str(folder), user="neuroweaver", dbname="postgres", autocommit=True)
        except psycopg.OperationalError:  # it starts
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text())
            time.sleep(0.02)


def _postgresql_user() -> tuple[int, int]:
    """PostgreSQL refuses to run as root."""
    if os.getuid():
        return os.getuid(), os.getgid()
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    found = names.get("postgres") or names["nobody"]
    return found.pw_uid, found.pw_gid


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no store is yet. A test that has it runs twice."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    make: Callable[[], str] = request.getfixturevalue("postgresql")
    return make()


@pytest.fixture
def opened(store_url: str) -> Store:
    """A new store."""
    return Store(store_url)
