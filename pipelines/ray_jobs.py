"""Jobs on Ray: the training function under Ray Train, on one worker or several, with retries."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from neuroweaver import errors, memory
from pipelines import job as jobs
from pipelines import ray_stream
from pipelines.job import Job
from pipelines.ray_cluster import HeadLostError


def run(job: Job) -> Iterator[dict[str, Any]]:
    """Train on the cluster this process has joined, and yield the events as they happen.

    A worker that dies is replaced and goes on from the newest checkpoint. Raises TrainingError with the worker's own
    words where all retries are used up, HeadLostError where the cluster itself is gone.
    """
    import ray
    from ray.exceptions import RayError
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    config = job.config
    gpus = config.ray.gpus_per_worker
    if gpus is None:
        gpus = int(ray.cluster_resources().get("GPU", 0) >= config.ray.num_workers)
    events = Queue(actor_options={"num_cpus": 0})
    streamed = ray_stream.examples(job) if job.streams else None
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "job": jobs.pack(job),
            "events": events,
            "streamed": ray_stream.count(job, streamed) if streamed is not None else None,
        },
        # Every worker reads the whole stream and takes its share of each batch, as it does from memory.
        datasets={"train": streamed} if streamed is not None else None,
        dataset_config=DataConfig(datasets_to_split=[], execution_options=ray_stream.in_order()),
        scaling_config=ScalingConfig(
            num_workers=config.ray.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": job.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=job.id,
            storage_path=str(job.home / "ray"),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
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
                yield {"event": "Waiting"}  # so that whoever reads can cancel, though no worker has started yet
            except RayError as error:
                raise HeadLostError(f"the Ray cluster is gone: {_reason(error)}") from error
    finally:
        events.shutdown(force=True)
    thread.join()
    if isinstance(outcome[0], RayError):
        raise HeadLostError(f"the Ray cluster is gone: {_reason(outcome[0])}")
    if outcome[0] is not None:
        raise errors.TrainingError(_reason(outcome[0]))


def _work(settings: dict[str, Any]) -> None:
    """What a worker runs."""
    import ray.train
    import ray.train.torch
    import torch

    from pipelines.replicas import Replicas

    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)

    job = jobs.unpack(settings["job"])
    events = settings["events"]
    replicas = Replicas.of_process_group()
    source = None
    if settings["streamed"] is not None:
        source = ray_stream.Streamed(ray.train.get_dataset_shard("train"), settings["streamed"])
    try:
        for event in jobs.train(job, replicas=replicas, source=source):
            if replicas.is_first:
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
