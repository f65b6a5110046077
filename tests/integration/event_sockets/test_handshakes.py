"""Who is let in to watch, and who is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving.auth.access import open_access
from tests.integration.event_sockets.watching import SALES, Server, read, run, watching


async def refusal(url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    body: dict[str, Any] = json.loads(caught.value.response.body or b"{}")
    return caught.value.response.status_code, body


def test_without_a_valid_token_the_handshake_is_refused_as_any_request(
    server: Server, issuer: LocalIssuer, token: str
) -> None:
    url = f"ws://{server.address}/ws"
    old, nobody = issuer.issue(User("ada", "admin"), -1), issuer.issue(User("eve", None), 1)

    async def test() -> None:
        status, body = await refusal(url)
        assert (status, body["code"], body["success"]) == (401, "unauthenticated", False)
        for options in (
            {"additional_headers": {"Authorization": "Bearer x.y.z"}}, {"additional_headers": {"Authorization": f"Bearer {old}"}},
            {"subprotocols": ["bearer"]}, {"subprotocols": ["bearer", old]}, {"subprotocols": [token]},
            {"subprotocols": ["bearer", token, token]},
            {"subprotocols": ["bearer", token], "additional_headers": {"Authorization": f"Bearer {token}"}},
        ):  # fmt: skip
            assert (await refusal(url, **options))[0] == 401, options
        status, body = await refusal(url, additional_headers={"Authorization": f"Bearer {nobody}"})
        assert (status, body["code"]) == (403, "forbidden")
        assert (
            await refusal(f"ws://{server.address}/nothing", additional_headers={"Authorization": f"Bearer {token}"})
        )[0] in (403, 404)

    run(test())
    assert server.sockets == 0


def test_a_browser_shows_its_token_as_a_subprotocol(server: Server, token: str) -> None:
    async def test() -> str | None:
        async with connect(
            f"ws://{server.address}/ws", subprotocols=["bearer", token], origin="https://app.example"
        ) as client:  # type: ignore[arg-type, list-item]
            await client.send(json.dumps({"type": "subscribe", "channel": SALES}))
            assert (await read(client))["type"] == "subscribed"
            return client.subprotocol

    assert run(test()) == "bearer"


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [(None, True), ("http://localhost:5173", True), ("http://127.0.0.1", True), ("https://evil.example", False),
     ("null", False), ("http://localhost.evil.example", False), ("http://[::1", False)],
)  # fmt: skip
def test_without_tokens_no_page_of_another_site_may_watch(
    serve: Callable[..., Server], settings: Settings, origin: str | None, let_in: bool
) -> None:
    chosen = Settings(home=settings.home)
    server = serve(chosen, open_access(chosen, ["127.0.0.1"]))
    url, options = f"ws://{server.address}/ws", {} if origin is None else {"additional_headers": {"Origin": origin}}

    async def test() -> int:
        try:
            async with connect(url, **options):  # type: ignore[arg-type]
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    polling = httpx.get(
        f"http://{server.address}/socket.io/?EIO=4&transport=polling",
        headers={} if origin is None else {"Origin": origin},
    )
    assert (run(test()), polling.status_code) == ((101, 200) if let_in else (403, 403))


def test_no_more_sockets_are_let_in_than_the_settings_say(
    serve: Callable[..., Server], settings: Settings, token: str
) -> None:
    server = serve(settings.model_copy(update={"max_event_sockets": 1}))

    async def test() -> None:
        async with watching(server, token, SALES):
            status, body = await refusal(
                f"ws://{server.address}/ws", additional_headers={"Authorization": f"Bearer {token}"}
            )
            assert (status, body["code"]) == (503, "unavailable")
            polling = f"http://{server.address}/socket.io/?EIO=4&transport=polling"
            assert httpx.get(polling).status_code == 503

    run(test())
