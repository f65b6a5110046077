"""The local issuer: signs tokens with a key of this data folder, for where there is no identity provider."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from neuroweaver import files
from neuroweaver.errors import ConfigError, IntegrityError
from neuroweaver.users import GROUPS, User

ISSUER = "urn:neuroweaver:local"
CLIENT_ID = "neuroweaver"
KEY_BITS = 2048


class LocalIssuer:
    """The issuer of the data folder `home`. Its key is made when it is first needed, readable by its owner alone.

    Raises StorageError where the key can't be written, ConfigError where others could read it, and IntegrityError
    where its file holds none.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "auth" / "key.pem"

    def issue(self, user: User, hours: float) -> str:
        """A token that says what `user` is, for `hours` from now; the claims are those of Cognito's access tokens."""
        key, now = self._key(), datetime.now(UTC)
        claims = {
            "iss": ISSUER, "client_id": CLIENT_ID, "token_use": "access", "sub": user.id, GROUPS: user.groups(),
            "iat": now, "exp": now + timedelta(hours=hours), "jti": uuid4().hex,
        }  # fmt: skip
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": _name(key.public_key())})

    def public_keys(self) -> dict[str, rsa.RSAPublicKey]:
        """What verifies its tokens, by key id."""
        key = self._key().public_key()
        return {_name(key): key}

    def _key(self) -> rsa.RSAPrivateKey:
        if not self._path.exists():
            self._create()
        if self._path.stat().st_mode & 0o077:
            raise ConfigError(
                f"others can read {self._path}: `chmod 600` it, or delete it and tokens it has signed end"
            )
        try:
            key = serialization.load_pem_private_key(self._path.read_bytes(), password=None)
        except (ValueError, TypeError):
            raise IntegrityError(f"{self._path} holds no private key: delete it, and a new one is made") from None
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < KEY_BITS:
            raise IntegrityError(f"{self._path} holds no RSA key of {KEY_BITS} bits: delete it, and a new one is made")
        return key

    def _create(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with files.storage_errors(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.{uuid4().hex}")
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                    os.link(temporary, self._path)
            finally:
                temporary.unlink(missing_ok=True)


def _name(key: rsa.RSAPublicKey) -> str:
    """A key id that follows from the key."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()[:16]).decode().rstrip("=")
