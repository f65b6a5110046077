"""Upstreams over real sockets: what is sent, what is made of every kind of answer, and where no connection goes."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import logging
import math
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import ConfigError, NeuroWeaverError, UsageError
from neuroweaver.inference.sampling import Sampling
from neuroweaver.upstreams import UpstreamSettings
from serving.engine import completion_events
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineError,
    EngineRequest,
    Message,
    PromptTooLongError,
    QueueFullError,
    TryAgainError,
)
from serving.engine.several import open_upstreams
from serving.engine.upstream import Upstream

CANARY = "sk-canary-77aa"
METADATA = "169.254.169.254"
ASKED = EngineRequest((Message("system", "Be brief."), Message("user", "hello")), "sales-vllm", 20.0)
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Keeps what it was asked, and lets `reply` answer."""

    protocol_version = "HTTP/1.1"
    reply: Reply
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append({"path": self.path, "headers": dict(self.headers), "body": json.loads(body)})
        self.close_connection = True
        type(self).reply(self)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass

    def begin(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, data: Any) -> None:
        self.send(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def delta(text: str | None = None, reason: str | None = None, *logprobs: float) -> dict[str, Any]:
    told = {"content": [{"token": text, "logprob": each} for each in logprobs]} if logprobs else None
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason, "logprobs": told}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 12, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}},
}
WHOLE = [delta("Hel", None, -0.5), delta("lo", None, -1.5), delta(None, "stop"), USAGE]


def answering(*events: Any, done: bool = True) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin()
        for each in events:
            handler.event(each)
        if done:
            handler.event(b"[DONE]")
        handler.end()

    return reply


def refusing(status: int, body: Any = None, **headers: str) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin(status, Content_Type="application/json", **headers)
        handler.send(json.dumps(body or {"error": {"message": f"no, {CANARY}"}}).encode())
        handler.end()

    return reply


class Server:
    def __init__(self, port: int, asked: list[dict[str, Any]]) -> None:
        self.port, self.asked = port, asked

    def settings(self, **options: Any) -> UpstreamSettings:
        given = {"url": f"http://127.0.0.1:{self.port}/v1", "model": "sales", "allow_private": True}
        return UpstreamSettings(**given | options)


@contextmanager
def serving(reply: Reply, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    asked: list[dict[str, Any]] = []
    handler = type("Replying", (Handler,), {"reply": reply, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # callers leave, or refuse a certificate
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Server(server.server_address[1], asked)
        finally:
            server.shutdown()
            thread.join()


def names(*answers: Sequence[str]) -> Callable[[str, int], Any]:
    """A resolver that answers differently each time, and in the end always the same."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def submit(settings: UpstreamSettings, request: EngineRequest = ASKED, **options: Any) -> EngineAnswer:
    return asyncio.run(Upstream("sales-vllm", settings, **options).submit(request))


async def collected(pieces: AsyncIterator[str | EngineAnswer]) -> list[str | EngineAnswer]:
    return [piece async for piece in pieces]


# What is sent, and what is made of a good answer


def test_an_answer_is_what_the_upstream_told_and_counted() -> None:
    with serving(answering(*WHOLE)) as server:
        answer = submit(server.settings())

    assert (answer.text, answer.cut) == ("Hello", False)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.answer_tokens, answer.forced_tokens) == (12, 8, 2, 0)
    assert answer.confidence == pytest.approx(math.exp(-1))
    assert [token.log_probability for token in answer.tokens] == [-0.5, -1.5]
    assert 0 < answer.first_token_seconds <= answer.compute_seconds


def test_a_stream_is_the_same_in_pieces() -> None:
    with serving(answering(*WHOLE)) as server:
        pieces = asyncio.run(collected(Upstream("sales-vllm", server.settings()).stream(ASKED)))

    assert pieces[:-1] == ["Hel", "lo"]
    assert isinstance(pieces[-1], EngineAnswer)
    assert pieces[-1].text == "Hello"


def test_everything_a_request_says_is_sent_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    request = EngineRequest(
        ASKED.messages, "sales-vllm", 20.0, schema, 77, Sampling(0.5, 0.9, 3), ("END", "\n"),
    )  # fmt: skip
    with serving(answering(delta('{"a": 1}', "stop"))) as server:
        submit(server.settings(), request)

    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["body"] == {
        "model": "sales",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "max_tokens": 77, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["END", "\n"], "logprobs": True,
        "stream": True, "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
    }  # fmt: skip
    assert "Authorization" not in asked["headers"]


def test_any_object_is_asked_for_as_openai_s_json_object() -> None:
    request = EngineRequest(ASKED.messages, "sales-vllm", 20.0, {"type": "object"})
    with serving(answering(delta("{}", "stop"))) as server:
        submit(server.settings(logprobs=False), request)

    assert server.asked[0]["body"]["response_format"] == {"type": "json_object"}
    assert "logprobs" not in server.asked[0]["body"]


def test_a_cut_answer_without_counts_and_probabilities_is_taken_as_it_is() -> None:
    with serving(answering(delta("Hel"), delta("lo", "length"), done=False)) as server:
        answer = submit(server.settings())

    assert (answer.text, answer.cut, answer.confidence) == ("Hello", True, 0.0)
    assert (answer.prompt_tokens, answer.answer_tokens) == (0, 0)


def test_events_are_read_however_they_are_cut_and_spelled() -> None:
    text = 'a\u2028b\x85c"é'
    stream = (
        b": a comment\r\n\r\nevent: x\r\nid: 1\r\ndata:" + json.dumps(delta(text), ensure_ascii=False).encode() +
        b'\r\n\r\ndata: {"choices":\ndata: [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\ndata: x\n\n'
    )  # fmt: skip

    def reply(handler: Handler) -> None:
        handler.begin()
        for index in range(len(stream)):
            handler.send(stream[index : index + 1])
        handler.end()

    with serving(reply) as server:
        assert submit(server.settings()).text == text


# Keys


@pytest.mark.parametrize("source", ["file", "variable"])
def test_the_key_is_sent_and_is_in_no_log_and_no_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(CANARY + "\n")
    monkeypatch.setenv("VLLM_KEY", CANARY)
    where = {"api_key_file": tmp_path / "key"} if source == "file" else {"api_key_env": "VLLM_KEY"}
    with serving(answering(*WHOLE)) as server:
        submit(server.settings(**where))
    replies = [refusing(status) for status in (302, 400, 401, 403, 404, 418, 429, 500)]
    replies += [answering({"error": {"message": CANARY}}), answering(CANARY), answering(delta(CANARY, CANARY))]
    said = []
    for reply in replies:
        with serving(reply) as refused, pytest.raises(NeuroWeaverError) as caught:
            submit(refused.settings(**where))
        said.append(str(caught.value))

    assert server.asked[0]["headers"]["Authorization"] == f"Bearer {CANARY}"
    assert any("refuses the API key" in words for words in said)
    assert CANARY not in "".join(said)
    assert "upstream sales-vllm" in caplog.text
    assert CANARY not in caplog.text
    assert CANARY not in repr(Upstream("a", server.settings(**where)).__dict__)


def test_a_key_that_goes_away_later_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    with serving(answering(*WHOLE)) as server:
        upstream = Upstream("sales-vllm", server.settings(api_key_file=tmp_path / "key"))
        (tmp_path / "key").unlink()
        with pytest.raises(EngineError, match="'sales-vllm': there is no API key to ask with$"):
            asyncio.run(upstream.submit(ASKED))

    assert server.asked == []


def test_an_upstream_that_can_t_be_opened_is_left_out_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ca").write_text("no certificate")
    declared = {
        name: UpstreamSettings(url="https://vllm.example.com/v1", model="m", **options)
        for name, options in {
            "good": {}, "taken": {}, "no-key": {"api_key_file": tmp_path / "none"},
            "no-ca": {"ca_file": tmp_path / "none"}, "bad-ca": {"ca_file": tmp_path / "ca"},
        }.items()
    }  # fmt: skip

    assert list(open_upstreams(declared, taken={"taken"})) == ["good"]
    for words in ("taken is left out: another model", "no-key is left out: api_key_file", "no-ca is left out: ca_file"):
        assert words in caplog.text
    with pytest.raises(ConfigError, match="ca_file .* can't be used"):
        Upstream("bad-ca", declared["bad-ca"])


# Addresses


@pytest.mark.security(23)
def test_the_address_that_was_checked_is_the_one_that_is_called() -> None:
    with serving(answering(*WHOLE)) as server:
        # This name is nowhere to be resolved but by our resolver: whoever asked again would find nothing.
        settings = server.settings(url=f"http://nowhere.invalid:{server.port}/v1")
        assert submit(settings, resolve=names(["127.0.0.1"])).text == "Hello"

    assert server.asked[0]["headers"]["Host"] == f"nowhere.invalid:{server.port}"


@pytest.mark.security(23)
def test_a_name_that_answers_differently_later_is_refused_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    with serving(answering(*WHOLE)) as server:
        settings = server.settings(url=f"http://rebinding.invalid:{server.port}/v1")
        upstream = Upstream("sales-vllm", settings, resolve=names(["127.0.0.1"], [METADATA]))

        assert asyncio.run(upstream.submit(ASKED)).text == "Hello"
        with pytest.raises(EngineError, match="'sales-vllm': its address may not be called$"):
            asyncio.run(upstream.submit(ASKED))

    assert len(server.asked) == 1
    assert "rebinding.invalid is 169.254.169.254: link-local and metadata addresses are never called" in caplog.text


@pytest.mark.parametrize(
    ("url", "found", "allow_private"),
    [
        ("https://a.invalid/v1", ["127.0.0.1"], False),
        ("https://a.invalid/v1", ["10.1.2.3"], False),
        ("https://a.invalid/v1", ["::1"], False),
        ("https://a.invalid/v1", ["8.8.8.8", "10.1.2.3"], False),
        ("https://a.invalid/v1", ["127.0.0.1", METADATA], True),
        ("https://a.invalid/v1", ["fe80::1%2"], True),
        ("https://a.invalid/v1", ["::ffff:169.254.169.254"], True),
        ("https://a.invalid/v1", ["64:ff9b::a9fe:a9fe"], True),
        ("https://a.invalid/v1", ["0.0.0.0"], True),
        ("http://a.invalid/v1", ["8.8.8.8"], True),
    ],
)
def test_a_name_of_an_address_that_may_not_be_called_is_refused(
    url: str, found: list[str], allow_private: bool
) -> None:
    settings = UpstreamSettings(url=url, model="m", allow_private=allow_private)

    with pytest.raises(EngineError, match="its address may not be called"):
        submit(settings, resolve=names(found))


def test_the_next_address_is_called_where_one_does_not_answer() -> None:
    with serving(answering(*WHOLE)) as server:
        settings = server.settings(url=f"http://a.invalid:{server.port}/v1")
        assert submit(settings, resolve=names(["127.0.0.2", "127.0.0.1"])).text == "Hello"


@pytest.mark.security(23)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with serving(answering(*WHOLE)) as elsewhere:
        target = f"http://127.0.0.1:{elsewhere.port}/v1/chat/completions"
        with serving(refusing(status, Location=target)) as server, pytest.raises(EngineError, match="it redirects"):
            submit(server.settings())

    assert elsewhere.asked == []


def test_proxies_and_logins_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login a password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(answering(*WHOLE)) as server:
        assert submit(server.settings()).text == "Hello"

    assert "Authorization" not in server.asked[0]["headers"]


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """The file of a CA of our own, and a server's side of TLS with its certificate for `vllm.invalid` and 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])

    def certificate(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    ca = (
        certificate(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names = [x509.DNSName("vllm.invalid"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        certificate(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "leaf.pem").write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    return folder / "ca.pem", context


@pytest.mark.parametrize("host", ["vllm.invalid", "127.0.0.1"])
def test_tls_goes_by_the_name_and_the_ca_that_is_given(host: str, authority: tuple[Path, ssl.SSLContext]) -> None:
    ca_file, context = authority
    asked_for: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    with serving(answering(*WHOLE), context) as server:
        settings = server.settings(url=f"https://{host}:{server.port}/v1", ca_file=ca_file)
        assert submit(settings, resolve=names(["127.0.0.1"])).text == "Hello"

    assert asked_for == ["vllm.invalid" if host == "vllm.invalid" else None]


@pytest.mark.parametrize(("host", "own_ca"), [("other.invalid", True), ("vllm.invalid", False)])
def test_another_host_s_certificate_and_an_unknown_ca_are_refused(
    host: str, own_ca: bool, authority: tuple[Path, ssl.SSLContext]
) -> None:
    ca_file, context = authority
    with serving(answering(*WHOLE), context) as server:
        settings = server.settings(url=f"https://{host}:{server.port}/v1", ca_file=ca_file if own_ca else None)
        with pytest.raises(EngineError, match="'sales-vllm': its certificate is not to be trusted$"):
            submit(settings, resolve=names(["127.0.0.1"]))

    assert server.asked == []


# Answers that are none


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refusing(401), EngineError, "'sales-vllm': it refuses the API key, or asks for one"),
        (refusing(403), EngineError, "'sales-vllm': it refuses the API key, or asks for one"),
        (refusing(404), EngineError, "'sales-vllm': it has no such model"),
        (refusing(500), EngineError, "'sales-vllm': it failed with status 500"),
        (refusing(418), EngineError, "'sales-vllm': it failed with status 418"),
        (refusing(204), EngineError, "'sales-vllm': it failed with status 204"),
        (refusing(504), DeadlineError, "'sales-vllm': not answered in time"),
        (refusing(400), UsageError, "does not take the request as it is"),
        (refusing(422), UsageError, "does not take the request as it is"),
        (refusing(413), PromptTooLongError, "too long"),
        (refusing(400, {"error": {"code": "context_length_exceeded"}}), PromptTooLongError, "too long"),
        (refusing(400, {"error": {"type": "exceed_context_size_error"}}), PromptTooLongError, "too long"),
        (refusing(400, {"error": {"message": "This model's maximum context length is 9"}}), PromptTooLongError, "long"),
        (refusing(200, {"choices": []}), EngineError, "'sales-vllm': the answer is no stream of events"),
        (answering(), EngineError, "'sales-vllm': the answer broke off"),
        (answering(delta("Hel")), EngineError, "'sales-vllm': the answer broke off"),
        (answering(b"{nonsense"), EngineError, "no chunk of a chat completion"),
        (answering(b"[1]"), EngineError, "no chunk of a chat completion"),
        (answering(b'{"choices": [{"delta": {"content": 5}}]}'), EngineError, "no chunk of a chat completion"),
        (answering(b'{"usage": {"prompt_tokens": -1, "completion_tokens": 0}}'), EngineError, "no chunk"),
        (answering(b"\xff\xfe"), EngineError, "no chunk of a chat completion"),
        (answering(delta("Hel"), {"error": {"message": CANARY}}), EngineError, "an error was reported"),
        (answering(delta("Hel", "content_filter")), EngineError, "was withheld, or is no text"),
    ],
)  # fmt: skip
def test_every_other_answer_is_an_error_that_says_what_is_wrong(
    reply: Reply, kind: type[Exception], words: str
) -> None:
    with serving(reply) as server, pytest.raises(kind, match=words) as caught:
        submit(server.settings())

    assert CANARY not in str(caught.value)
    assert str(server.port) not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "value", "least", "most"),
    [
        (429, "7", 7, 7),
        (503, "7", 7, 7),
        (429, "0", 1, 1),
        (429, "999999", 3600, 3600),
        (429, "soon", 5, 5),
        (429, "²", 5, 5),
        (429, "", 5, 5),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT", 1, 1),
    ],
)
def test_a_busy_upstream_says_when_to_come_back(status: int, value: str, least: int, most: int) -> None:
    def reply(handler: Handler) -> None:
        handler.begin(status, Retry_After=value.encode().decode("latin-1"))
        handler.end()

    with serving(reply) as server, pytest.raises(QueueFullError, match="'sales-vllm': it is busy") as caught:
        submit(server.settings())

    assert least <= caught.value.retry_after_seconds <= most


def test_a_busy_upstream_may_say_the_time_to_come_back() -> None:
    def reply(handler: Handler) -> None:
        in_half_an_hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=30)
        handler.begin(429, Retry_After=format_datetime(in_half_an_hour, usegmt=True))
        handler.end()

    with serving(reply) as server, pytest.raises(QueueFullError) as caught:
        submit(server.settings())

    assert 900 <= caught.value.retry_after_seconds <= 1800


def test_a_connection_that_breaks_off_is_an_error_after_the_pieces_that_came() -> None:
    def reply(handler: Handler) -> None:
        handler.begin()
        handler.event(delta("Hel"))
        handler.wfile.write(b"50\r\ndata: {")

    async def run(upstream: Upstream) -> None:
        pieces = upstream.stream(ASKED)
        assert await anext(pieces) == "Hel"
        with pytest.raises(EngineError, match="'sales-vllm': the answer broke off"):
            await anext(pieces)

    with serving(reply) as server:
        asyncio.run(run(Upstream("sales-vllm", server.settings())))


@pytest.mark.parametrize("block", [b"x" * 50_000, b"data: " + json.dumps(delta("x" * 50_000)).encode() + b"\n\n"])
def test_an_answer_without_end_is_given_up_at_a_bound(block: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def reply(handler: Handler) -> None:
        nonlocal sent
        handler.begin()
        while sent < 50_000_000:
            handler.send(block)
            sent += len(block)

    bounded = completion_events.events
    monkeypatch.setattr("serving.engine.upstream.events", lambda received: bounded(received, max_bytes=1_000_000))
    with serving(reply) as server, pytest.raises(EngineError, match="more than 1000000 bytes"):
        submit(server.settings())

    assert sent < 50_000_000


def test_a_compressed_answer_is_refused_unopened() -> None:
    def reply(handler: Handler) -> None:
        handler.begin(200, Content_Encoding="gzip")
        handler.end()

    with serving(reply) as server, pytest.raises(EngineError, match="no stream of events"):
        submit(server.settings())

    assert server.asked[0]["headers"]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ('{"a": "x"}', "stop", r"does not keep to the JSON schema \(type\)"),
        ("Sure! Here is it", "stop", "the answer is no JSON"),
        ('{"a": 1', "length", "the JSON was cut at 1024 tokens"),
    ],
)
def test_json_that_does_not_keep_to_the_schema_is_never_passed_on(text: str, reason: str, words: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    with serving(answering(delta(text, reason))) as server, pytest.raises(EngineError, match=words):
        submit(server.settings(), EngineRequest(ASKED.messages, "sales-vllm", 20.0, schema))


def test_a_schema_that_can_t_be_kept_is_refused_before_anything_is_sent() -> None:
    with serving(answering(*WHOLE)) as server, pytest.raises(UsageError, match="nil"):
        submit(server.settings(), EngineRequest(ASKED.messages, "sales-vllm", 20.0, {"type": "nil"}))

    assert server.asked == []


# Time and room


def silent(seconds: float, *first: Any) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin()
        for each in first:
            handler.event(each)
        time.sleep(seconds)

    return reply


def test_a_server_that_says_nothing_for_too_long_is_given_up() -> None:
    with serving(silent(1, delta("Hel"))) as server, pytest.raises(DeadlineError, match="'sales-vllm': not answered"):
        submit(server.settings(read_seconds=0.2))


def test_the_request_s_deadline_is_above_all_other_times() -> None:
    def drip(handler: Handler) -> None:
        handler.begin()
        for _ in range(100):
            handler.event(delta("x"))
            time.sleep(0.02)

    request = EngineRequest(ASKED.messages, "sales-vllm", 0.3)
    started = time.monotonic()
    with serving(drip) as server, pytest.raises(DeadlineError, match=r"no answer within 0\.3 seconds"):
        submit(server.settings(), request)

    assert time.monotonic() - started < 1.9


def test_the_deadline_holds_where_another_task_reads_on() -> None:
    async def run(upstream: Upstream) -> None:
        pieces = upstream.stream(EngineRequest(ASKED.messages, "sales-vllm", 0.3))
        assert await asyncio.create_task(anext(pieces)) == "Hel"
        with pytest.raises(DeadlineError, match=r"no answer within 0\.3 seconds"):
            await asyncio.create_task(anext(pieces))

    with serving(silent(1, delta("Hel"))) as server:
        asyncio.run(run(Upstream("sales-vllm", server.settings())))


def test_a_name_that_takes_too_long_to_resolve_is_not_waited_for() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    settings = UpstreamSettings(url="https://a.invalid/v1", model="m", connect_seconds=0.1)

    with pytest.raises(DeadlineError, match="'sales-vllm': not connected in time"):
        submit(settings, resolve=never)


def test_a_server_that_is_not_there_is_said_so() -> None:
    with serving(answering()) as server:
        settings = server.settings()

    with pytest.raises(TryAgainError, match="'sales-vllm': can't be reached$") as caught:
        submit(settings)
    assert caught.value.retry_after_seconds == 5
    with pytest.raises(EngineError, match="'sales-vllm': can't be reached$"):
        submit(UpstreamSettings(url="https://nowhere.invalid/v1", model="m"))


def test_more_requests_than_may_be_are_refused_and_those_that_leave_make_room() -> None:
    async def run(upstream: Upstream) -> None:
        first = upstream.stream(ASKED)
        assert await anext(first) == "Hel"
        with pytest.raises(QueueFullError, match="1 requests are under way, as many as may") as caught:
            await upstream.submit(ASKED)
        assert caught.value.retry_after_seconds == 1
        await first.aclose()
        leaving = asyncio.create_task(upstream.submit(ASKED))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        last = upstream.stream(ASKED)
        assert await anext(last) == "Hel"
        await last.aclose()

    with serving(silent(0.5, delta("Hel"))) as server:
        asyncio.run(run(Upstream("sales-vllm", server.settings(max_requests=1))))

    assert len(server.asked) == 3
