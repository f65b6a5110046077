"""Tokens verified with real RS256 keys, which a real JWKS server gives out, changes, withholds and never sees asked."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from neuroweaver.users import User
from serving.auth import jwks
from serving.auth.key_cache import FETCH_EVERY_SECONDS, FRESH_SECONDS, KeyCache
from serving.auth.tokens import LEEWAY_SECONDS, MAX_CHARACTERS, TokenRefusedError, TokenVerifier

T = TypeVar("T")
CLIENT = "3n4b5urk1ft4fl3mg5e62d9ado"
OLD, NEW, OTHER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3))


class JwksServer:
    """A key server; `keys` are what it gives out, `asked` the paths that it was asked for."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = json.dumps({"keys": outer.keys}).encode()
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/pool_1"

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def public(key: rsa.RSAPrivateKey, kid: str, **changed: Any) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "RS256"} | changed


@pytest.fixture
def server() -> Iterator[JwksServer]:
    started = JwksServer()
    started.keys = [public(OLD, "old")]
    yield started
    started.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(server: JwksServer, clock: Clock) -> TokenVerifier:
    return TokenVerifier(KeyCache(lambda: jwks.fetch_keys(server.issuer), clock), server.issuer, [CLIENT])


def claims(issuer: str, **changed: Any) -> dict[str, Any]:
    """The claims of a Cognito access token; None leaves one out."""
    now = int(time.time())
    whole = {
        "iss": issuer, "sub": "b3f1", "client_id": CLIENT, "token_use": "access", "scope": "openid", "iat": now,
        "auth_time": now, "exp": now + 3600, "jti": "a1", "cognito:groups": ["manager", "sales"],
    } | changed  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}


def signed(issuer: str, key: Any = OLD, kid: str | None = "old", *, headers: Any = None, **changed: Any) -> str:
    named = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(issuer, **changed), key, algorithm="RS256", headers=named | (headers or {}))


def run(work: Awaitable[T]) -> T:
    async def awaited() -> T:
        return await work

    return asyncio.run(awaited())


def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenRefusedError) as caught:
        run(verifier.user_of(token))
    return str(caught.value)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.security(5)
def test_a_cognito_access_token_is_a_user_with_the_role_and_departments_of_its_groups(
    verifier: TokenVerifier, server: JwksServer
) -> None:
    user = run(
        verifier.user_of(
            signed(server.issuer, **{"cognito:groups": ["manager", "parts", "sales", "customerPII", "golf"]})
        )
    )

    assert user == User("b3f1", "manager", frozenset(("sales", "parts")), customer_pii=True)
    assert server.asked == ["/pool_1/.well-known/jwks.json"]


@pytest.mark.parametrize("groups", [None, [], ["golf"], ["admin", "agent"], "admin", [["admin"]], {"admin": 1}])
def test_groups_that_name_no_one_role_give_none(verifier: TokenVerifier, server: JwksServer, groups: Any) -> None:
    assert run(verifier.user_of(signed(server.issuer, **{"cognito:groups": groups}))).role is None


@pytest.mark.security(3, 4, 5)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"exp": int(time.time()) - LEEWAY_SECONDS - 5}, "has expired"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet"),
        ({"exp": None}, "no exp"),
        ({"exp": "tomorrow"}, "can't be read"),
        ({"iss": "https://cognito-idp.eu-central-1.amazonaws.com/another"}, "another issuer"),
        ({"iss": None}, "no iss"),
        ({"token_use": "id"}, "no access token"),
        ({"token_use": None}, "no token_use"),
        ({"client_id": "another"}, "another client"),
        ({"client_id": [CLIENT]}, "another client"),
        ({"client_id": None, "aud": CLIENT}, "no client_id"),
        ({"sub": None}, "no sub"),
        ({"sub": ""}, "names no user"),
    ],
)
def test_a_token_that_claims_something_else_is_refused(
    verifier: TokenVerifier, server: JwksServer, changed: dict[str, Any], said: str
) -> None:
    assert said in refusal(verifier, signed(server.issuer, **changed))


@pytest.mark.security(3)
def test_clocks_may_differ_by_the_leeway(verifier: TokenVerifier, server: JwksServer) -> None:
    now = int(time.time())

    assert run(verifier.user_of(signed(server.issuer, exp=now - LEEWAY_SECONDS + 20, nbf=now + LEEWAY_SECONDS - 20)))


@pytest.mark.security(3, 6)
def test_a_token_that_was_verified_once_still_ends_and_goes_with_its_key(
    verifier: TokenVerifier, server: JwksServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.auth.tokens.LEEWAY_SECONDS", 0)
    token, short = signed(server.issuer), signed(server.issuer, exp=int(time.time()) + 2)
    assert [run(verifier.user_of(each)).id for each in (token, short) * 3] == ["b3f1"] * 6

    time.sleep(2.1)
    assert "has expired" in refusal(verifier, short)
    assert run(verifier.user_of(token))

    server.keys = [public(OTHER, "old")]  # another key of the same name
    clock.now += FETCH_EVERY_SECONDS
    refusal(verifier, signed(server.issuer, NEW, "new"))
    assert "signature is wrong" in refusal(verifier, token)


def test_the_tokens_that_are_remembered_take_bounded_memory(
    verifier: TokenVerifier, server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.auth.tokens.MAX_SEEN", 3)
    for number in range(9):
        run(verifier.user_of(signed(server.issuer, jti=str(number))))

    assert len(verifier._seen) == 3


def forged(server: JwksServer) -> dict[str, str]:
    """Tokens that try to choose how they are verified."""
    pem = OLD.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    body = part(claims(server.issuer))
    hs256 = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'old'})}.{body}"
    mac = jwt.get_algorithm_by_name("HS256").sign(hs256.encode(), pem)
    elsewhere = f"{server.issuer}/attacker.json"
    return {
        "no algorithm": f"{part({'alg': 'none', 'kid': 'old'})}.{body}.",
        "NONE": f"{part({'alg': 'nOnE', 'kid': 'old'})}.{body}.",
        "HS256 with the public key": f"{hs256}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}",
        "RS512": jwt.encode(claims(server.issuer), OLD, algorithm="RS512", headers={"kid": "old"}),
        "no kid": signed(server.issuer, kid=None),
        "another key": signed(server.issuer, OTHER),
        "changed claims": ".".join(
            (signed(server.issuer).split(".")[0], part(claims(server.issuer, sub="admin")), signed(server.issuer).split(".")[2])
        ),
        "jku": signed(server.issuer, OTHER, headers={"jku": elsewhere}),
        "x5u": signed(server.issuer, OTHER, headers={"x5u": elsewhere}),
        "jwk": signed(server.issuer, OTHER, headers={"jwk": public(OTHER, "old")}),
        "crit": signed(server.issuer, headers={"crit": ["exp"]}),
    }  # fmt: skip


@pytest.mark.security(1, 2)
def test_a_token_can_not_choose_how_it_is_verified(verifier: TokenVerifier, server: JwksServer) -> None:
    for name, token in forged(server).items():
        assert "the token" in refusal(verifier, token), name

    assert run(verifier.user_of(signed(server.issuer))), "the same, untouched"
    assert set(server.asked) == {"/pool_1/.well-known/jwks.json"}


@pytest.mark.security(2)
def test_a_token_that_points_elsewhere_has_nothing_fetched(verifier: TokenVerifier, server: JwksServer) -> None:
    for header in ("jku", "x5u", "x5c", "jwk", "crit"):
        assert "the token" in refusal(verifier, signed(server.issuer, headers={header: ["http://169.254.169.254/"]}))

    assert server.asked == []


@pytest.mark.parametrize(
    "token",
    [
        "", "x", "a.b.c", "...", "é.é.é", "[]", "." * 50, part([]) + ".e30.AA", "A" * (MAX_CHARACTERS + 1),
        base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.AA",
        base64.urlsafe_b64encode(b'{"alg":"RS256","kid":' + b"[" * 3000).decode() + ".e30.AA",
        part({"alg": "RS256", "kid": 7}) + ".e30.AA",
        part({"alg": ["RS256"], "kid": "old"}) + ".e30.AA",
        part({"alg": "RS256", "kid": "old"}) + ".!!.AA",
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused_without_repeating_it(verifier: TokenVerifier, token: str) -> None:
    said = refusal(verifier, token)

    assert said.startswith("the token")
    assert len(token) < 5 or token not in said


def test_a_new_key_is_fetched_when_a_token_names_it_and_the_old_one_goes(
    verifier: TokenVerifier, server: JwksServer, clock: Clock
) -> None:
    run(verifier.user_of(signed(server.issuer)))
    server.keys = [public(NEW, "new")]
    clock.now += FETCH_EVERY_SECONDS

    run(verifier.user_of(signed(server.issuer, NEW, "new")))

    assert "unknown key" in refusal(verifier, signed(server.issuer))
    assert len(server.asked) == 2


@pytest.mark.security(6)
def test_made_up_key_ids_have_the_keys_fetched_once_in_an_interval(
    verifier: TokenVerifier, server: JwksServer, clock: Clock
) -> None:
    tokens = [signed(server.issuer, OTHER, f"made up {number}") for number in range(20)]

    async def flood() -> list[Any]:
        return await asyncio.gather(*map(verifier.user_of, [*tokens, signed(server.issuer)]), return_exceptions=True)

    *refused, known = run(flood())

    assert all(isinstance(error, TokenRefusedError) for error in refused)
    assert known.id == "b3f1"
    assert len(server.asked) == 1
    clock.now += FETCH_EVERY_SECONDS
    run(flood())
    assert len(server.asked) == 2


@pytest.mark.security(6)
def test_known_keys_are_kept_while_the_server_is_away_and_new_ones_found_when_it_is_back(
    verifier: TokenVerifier, server: JwksServer, clock: Clock
) -> None:
    run(verifier.user_of(signed(server.issuer)))
    server.status, server.keys = 503, [public(NEW, "new")]
    clock.now += FRESH_SECONDS + 1

    assert "unknown key" in refusal(verifier, signed(server.issuer, NEW, "new"))
    assert run(verifier.user_of(signed(server.issuer)))

    server.status = 200
    clock.now += FETCH_EVERY_SECONDS
    assert run(verifier.user_of(signed(server.issuer, NEW, "new")))


def test_a_withdrawn_key_goes_within_the_hour_though_nobody_names_another(
    verifier: TokenVerifier, server: JwksServer, clock: Clock
) -> None:
    async def used_until_refused() -> int:
        await verifier.user_of(signed(server.issuer))
        server.keys = [public(NEW, "new")]
        clock.now += FRESH_SECONDS + 1
        for used in itertools.count():
            try:
                await verifier.user_of(signed(server.issuer))
            except TokenRefusedError:
                return used
            await asyncio.sleep(0.01)
        raise AssertionError

    assert run(asyncio.wait_for(used_until_refused(), 20)) >= 1, "nobody waits for the keys meanwhile"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda server: setattr(server, "status", 404),
        lambda server: (setattr(server, "status", 302), server.headers.update(Location=f"{server.issuer}/other")),
        lambda server: setattr(server, "keys", []),
        lambda server: setattr(server, "keys", [public(OLD, "old", use="enc")]),
        lambda server: setattr(server, "keys", [public(OLD, "old", alg="RS512")]),
        lambda server: setattr(server, "keys", [public(OLD, "old", kty="oct")]),
        lambda server: setattr(server, "keys", [public(OLD, "old", n="AQAB")]),
        lambda server: setattr(server, "keys", [public(OLD, "old", n=None)]),
        lambda server: setattr(server, "keys", [7, {"kid": []}]),
        lambda server: setattr(server, "keys", [public(OLD, "old", pad="x" * jwks.MAX_BYTES)]),
        lambda server: server.close(),
    ],
)
def test_a_server_that_gives_no_usable_keys_is_an_error(
    server: JwksServer, change: Callable[[JwksServer], Any]
) -> None:
    issuer = server.issuer
    change(server)

    with pytest.raises(jwks.JwksError, match=r"jwks\.json"):
        run(jwks.fetch_keys(issuer))
    assert all(path.endswith("jwks.json") for path in server.asked), "no redirect is followed"
