"""Upstreams: OpenAI-compatible servers that answer under a name of ours, as `neuroweaver.yaml` declares them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from neuroweaver import addresses
from neuroweaver.errors import ConfigError
from neuroweaver.vocabulary import MODEL_TYPES

_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[A-Za-z0-9._~/%-]*)?")
_LONGEST_KEY = 16_384


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(f"a name is 1 to 64 letters, digits, dots, - and _, first a letter or digit: {name!r}")
    if name in MODEL_TYPES:
        raise ValueError(f"{name!r} is a model type, and names its champion: choose another, and set `model_type`")
    return name


UpstreamName = Annotated[str, AfterValidator(_name)]


class UpstreamSettings(BaseModel):
    """A server to ask, and how. `url` ends where `/chat/completions` begins; `model` is the model's name over there.

    Prompts of `model_type` may go there. The API key is in a file or in a variable of the environment, never here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    url: str
    model: str = Field(min_length=1, max_length=200)
    model_type: Literal["automotive-sales", "service-advisor", "parts-specialist", "finance-assistant"] | None = None
    api_key_file: Path | None = None
    api_key_env: str | None = None
    ca_file: Path | None = None
    connect_seconds: float = Field(5, gt=0)
    read_seconds: float = Field(60, gt=0)
    max_requests: int = Field(64, ge=1)
    logprobs: bool = True
    allow_private: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_key_here(cls, values: Any) -> Any:
        if isinstance(values, dict) and "api_key" in values:
            raise ValueError("an API key has no place here: name its file (`api_key_file`) or variable (`api_key_env`)")
        return values

    @field_validator("url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        if "@" in url:
            raise ValueError("no user or password in it: use `api_key_file` or `api_key_env`")
        found = _URL.fullmatch(url)
        if found is None or int(found[3] or 443) not in range(1, 65536):
            raise ValueError("must be http://host[:port]/path or https://host[:port]/path, without ? and #")
        if url.rstrip("/").endswith("/chat/completions"):
            raise ValueError("must end where /chat/completions begins, mostly in /v1")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must be the name of a variable: letters, digits and _")
        if name is not None and name.startswith("NEUROWEAVER_"):
            raise ValueError("variables that begin with NEUROWEAVER_ are settings: choose another name")
        return name

    @model_validator(mode="after")
    def _fits(self) -> UpstreamSettings:
        if self.api_key_file is not None and self.api_key_env is not None:
            raise ValueError("api_key_file and api_key_env exclude each other")
        if not self.has_tls and not self.allow_private:
            raise ValueError(
                "http:// goes to private and loopback addresses alone: use https, or `allow_private: true`"
            )
        if not self.has_tls and self.ca_file is not None:
            raise ValueError("ca_file is for https://")
        address = addresses.literal(self.host)
        reason = addresses.refusal(address, allow_private=self.allow_private) if address else None
        if reason is not None:
            raise ValueError(f"url: {reason}")
        if address is not None and not self.has_tls and not addresses.is_inside(address):
            raise ValueError("url: http:// goes to private and loopback addresses alone")
        return self

    @property
    def has_tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        found = _URL.fullmatch(self.url)
        return found[2] if found else ""

    def read_key(self) -> str | None:
        """The API key as it is now, None where none is configured.

        Raises ConfigError where there is none to read, or it can't be one; the message never holds it.
        """
        if self.api_key_env is not None:
            source, key = f"api_key_env {self.api_key_env}", os.environ.get(self.api_key_env, "")
        elif self.api_key_file is not None:
            source = f"api_key_file {self.api_key_file}"
            try:
                with self.api_key_file.open(encoding="ascii", errors="replace") as file:
                    key = file.read(_LONGEST_KEY)
            except OSError as error:
                raise ConfigError(f"{source} can't be read: {error.strerror}") from None
        else:
            return None
        key = key.strip()
        if not key:
            raise ConfigError(f"{source} is empty")
        if not re.fullmatch(r"[!-~]+", key):
            raise ConfigError(f"{source} holds no API key: one line of printable ASCII without blanks")
        return key
