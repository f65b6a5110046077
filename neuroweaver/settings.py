"""Settings: environment variables over `neuroweaver.yaml` over the defaults here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from neuroweaver import base_model, ports
from neuroweaver.errors import ConfigError
from neuroweaver.upstreams import UpstreamName, UpstreamSettings

FILE = "neuroweaver.yaml"
# For the command line, and for `neuroweaver.client` of a service that may be anywhere.
_NO_SETTINGS = {"NEUROWEAVER_DEBUG", "NEUROWEAVER_TOKEN", "NEUROWEAVER_URL"}


class Price(BaseModel):
    """What tokens cost, in US dollars a million."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_million_prompt_tokens: float = Field(0.0, ge=0)
    usd_per_million_answer_tokens: float = Field(0.0, ge=0)

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """US dollars for one request."""
        return (
            prompt_tokens * self.usd_per_million_prompt_tokens + answer_tokens * self.usd_per_million_answer_tokens
        ) / 1e6


class Settings(BaseSettings):
    """What a machine's owner may set; `NEUROWEAVER_HOME` sets `home`, and so on."""

    model_config = SettingsConfigDict(env_prefix="NEUROWEAVER_", yaml_file=FILE, extra="forbid", frozen=True)

    home: Path = Field(Path(".neuroweaver"), description="everything mutable lives under this folder")
    base_model: str = Field(base_model.DEFAULT, description="the base model that `setup` fetches and `serve` loads")
    mlflow_tracking_uri: str = Field("", description="an MLflow server; empty: SQLite under `home`")
    store_url: str = Field("", description="the database of jobs and events; empty: SQLite under `home`")
    keep_events_days: float = Field(14, gt=0, le=36_500, description="how long events are kept in the store")
    keep_executions_days: float = Field(30, gt=0, le=36_500, description="how long executions are kept in the store")
    keep_overrides_days: float = Field(
        90, gt=0, le=36_500, description="how long routing overrides that have ended are kept in the store"
    )
    mlflow_wait_minutes: float = Field(720, ge=0, description="how long a trained job waits for an MLflow that is away")
    host: str = Field("127.0.0.1", description="address the service binds")
    port: int = Field(3000, ge=1, le=65535, description="port the service binds")
    require_tokens: bool = Field(
        False, description="ask for tokens on loopback, too; on other addresses they are always asked for"
    )
    token_issuer: str = Field(
        "", description="who issues tokens, such as a Cognito user pool's URL; empty: `neuroweaver token`"
    )
    token_client_ids: tuple[str, ...] = Field(
        (), validate_default=True, description="app clients whose tokens are accepted; with `token_issuer` alone"
    )
    requests_per_minute: int = Field(600, ge=1, description="that one user may send; more are answered 429")
    max_quarantined: float = Field(
        0.10, ge=0, le=1, description="share of quarantined rows above which a file is refused"
    )
    max_upload_mib: int = Field(512, ge=1, description="of a file of training data sent over the API; more is 413")
    max_validations: int = Field(
        2, ge=1, description="uploads that are validated at once; sixteen times as many may wait, others get 503"
    )
    validation_timeout_seconds: float = Field(900, gt=0, description="deadline of the validation of one upload")
    max_training_jobs: int = Field(
        1, ge=1, description="jobs that run at once on this machine, of those started over the API; others are queued"
    )
    training_niceness: int = Field(
        10, ge=0, le=19, description="how far everything else comes before validation and training over the API"
    )
    log_format: Literal["text", "json"] = Field("text", description="of the service's log; json: an object a line")
    engine_precision: Literal["auto", "fp32", "int8", "bf16"] = Field(
        "auto", description="of the base model's weights in the engine; auto: the fastest this machine does well"
    )
    max_batch: int = Field(16, ge=1, le=256, description="requests the engine answers in one batch")
    max_queue: int = Field(64, ge=1, description="requests that may wait; more are answered 503 with Retry-After")
    max_kv_mib: int = Field(
        2048, ge=1, description="memory for the keys and values of running requests; the next one waits until it fits"
    )
    max_adapters: int = Field(32, ge=1, description="adapters the engine keeps in memory; others come when asked for")
    engine_hang_seconds: float = Field(
        60, ge=1, description="an engine with requests that takes no step for so long is killed and started again"
    )
    prices: dict[str, Price] = Field(
        default_factory=dict, description="per model type, or `default`: what a million tokens cost"
    )
    request_timeout_seconds: float = Field(60, gt=0, description="deadline of one request")
    routing_by_performance: bool = Field(
        False, description="deployments that are slower or fail more often get less of the traffic than their weight"
    )
    serving_config: Path | None = Field(
        None, description="a file such as configs/serving/default.yaml: the bake time of deployments"
    )
    health_interval_seconds: float = Field(
        10, ge=0.1, description="how often every deployment's health goes out as an event"
    )
    max_event_sockets: int = Field(1000, ge=1, description="who may watch events at once; more are answered 503")
    upstreams: dict[UpstreamName, UpstreamSettings] = Field(
        default_factory=dict, description="OpenAI-compatible servers that answer under a name of ours"
    )

    @field_validator("home", "serving_config")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("token_issuer")
    @classmethod
    def _issuer(cls, issuer: str) -> str:
        url = urlsplit(issuer)
        is_safe = url.scheme == "https" or (url.scheme == "http" and ports.is_loopback(url.hostname or ""))
        if issuer and (not is_safe or not url.hostname or url.query or url.fragment or url.username or url.password):
            raise ValueError("must be an https:// URL without user, password and query (http:// on loopback)")
        return issuer

    @field_validator("token_client_ids")
    @classmethod
    def _clients(cls, clients: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("token_issuer") and not any(clients):
            raise ValueError("token_issuer needs at least one client id")
        return clients

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def artifact_root(self) -> Path:
        return self.home / "mlflow" / "artifacts"

    def price_of(self, model: str | None) -> Price:
        """The price of a model, by its name or its type; None is the base model."""
        names = [model, model.partition("@")[0]] if model else []
        return next((self.prices[name] for name in [*names, "default"] if name in self.prices), Price())

    def masked(self) -> dict[str, object]:
        """Every setting as plain values; passwords inside URLs are not shown."""
        values = self.model_dump(mode="json")
        return {key: masked_url(value) if isinstance(value, str) else value for key, value in values.items()}


def masked_url(url: str) -> str:
    """`url` without the password it may hold."""
    return re.sub(r"://([^:/@]*):[^@]+@", r"://\1:***@", url)


def load() -> Settings:
    """The effective settings. Raises ConfigError, naming every setting that is wrong."""
    known = {f"NEUROWEAVER_{name.upper()}" for name in Settings.model_fields} | _NO_SETTINGS
    unknown = sorted(name for name in os.environ if name.startswith("NEUROWEAVER_") and name not in known)
    if unknown:
        raise ConfigError(
            f"settings: unknown {', '.join(unknown)} in the environment (allowed: {', '.join(sorted(known))})"
        )
    try:
        return Settings()
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ValidationError):
            raise ConfigError("settings: " + "; ".join(describe(error))) from None
        raise ConfigError(f"settings: {FILE} must hold keys and values: {' '.join(str(error).split())}") from None


def describe(error: ValidationError) -> list[str]:
    """One line per problem of a pydantic model: where, what, and the value, unless that may be a secret."""
    lines = []
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"])) or "(file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing")
        elif problem["loc"][:1] == ("upstreams",):  # what stands there by mistake may be a key
            lines.append(f"{where}: {problem['msg']}")
        else:
            lines.append(f"{where}: {problem['msg']}, got {problem['input']!r}")
    return lines
