"""The service as `neuroweaver serve` runs it, but for what its engine's process answers.

bentoml serve benchmarks.stub_service:NeuroWeaver
"""

from __future__ import annotations

from functools import partial

from serving import service
from serving.engine.supervisor import Supervisor

service.Supervisor = partial(Supervisor, program="benchmarks.stub_engine")
NeuroWeaver = service.NeuroWeaver
