"""A client of the service, for programs: `docs/client.md`."""

from neuroweaver.client.client import Client
from neuroweaver.client.errors import ApiError, ClientError
from neuroweaver.client.events import EventStream
from neuroweaver.client.retries import Retries

__all__ = ["ApiError", "Client", "ClientError", "EventStream", "Retries"]
