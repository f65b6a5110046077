"""Jobs on Ray: the training function under Ray Train, with retries. The only module that knows Ray.

Ray reads whether to ask for tokens when it is imported, so it is imported after `cluster` has said so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from threading import Thread
from typing import Any

from neuroweaver import errors, memory
from pipelines import job as jobs
from pipelines.job import Job


@contextlib.contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """The cluster at RAY_ADDRESS, or one of this machine's own, without dashboard.

    Ray's processes listen on every interface whatever address the node is given; the token, made anew in each
    process, is what keeps strangers out. Raises TrainingError where Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    options: dict[str, Any] = {
        "log_to_driver": bool(os.environ.get("NEUROWEAVER_DEBUG")),
        "logging_level": logging.ERROR,
    }
    # Not under the data folder: Ray keeps Unix sockets there, whose paths may not exceed 107 bytes.
    scratch = tempfile.mkdtemp(prefix="neuroweaver-ray-")
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": scratch}
        options |= {"_node_ip_address": "127.0.0.1"}
    try:
        try:
            ray.init(**options)
        except (RuntimeError, ConnectionError, ValueError, AssertionError) as error:
            raise errors.TrainingError(f"Ray does not start: {_reason(error)} (--local trains without it)") from error
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def run(job: Job) -> Iterator[dict[str, Any]]:
    """Train on Ray and yield the events as they happen; a worker that dies is replaced and goes on.

    Raises TrainingError with the worker's own words where all retries are used up.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    events = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": jobs.pack(job), "events": events},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": job.cpus}),
        run_config=RunConfig(
            name=job.id,
            storage_path=str(job.home / "ray"),
            failure_config=FailureConfig(max_failures=job.config.ray.max_failures),
            worker_runtime_env={"env_vars": memory.ENVIRONMENT},
        ),
    )
    outcome: list[BaseException | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = Thread(target=fit, daemon=True)
    thread.start()
    try:
        while True:
            over = not thread.is_alive()
            try:
                yield events.get(timeout=0.5)
            except Empty:
                if over:
                    break
    finally:
        events.shutdown(force=True)
    thread.join()
    if outcome[0] is not None:
        raise errors.TrainingError(_reason(outcome[0]))


def _work(settings: dict[str, Any]) -> None:
    """What a worker runs."""
    import ray.train

    job = jobs.unpack(settings["job"])
    events = settings["events"]
    try:
        for event in jobs.train(job):
            events.put(event)
            if event["event"] in ("Checkpointed", "Finished"):
                ray.train.report({"step": event["step"]})
    except errors.NeuroWeaverError as error:
        # These would come again at every retry: say so and end the run at once, with the reason.
        events.put({"event": "Failed", "kind": type(error).__name__, "message": str(error)})


def _reason(error: BaseException) -> str:
    """The last line of the worker's traceback: the part that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
