"""Encrypts secrets that the service must be able to read again, such as those of webhooks."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class CannotDecrypt(Exception):
    """No key that the service has can decrypt a secret."""


class SecretBox:
    """Encrypts with a key that is derived from a secret, and decrypts with its predecessors, too.

    It also authenticates: what was changed in the database is refused.
    """

    def __init__(self, secret: str, predecessors: Sequence[str] = ()) -> None:
        self._keys = MultiFernet([_fernet(each) for each in (secret, *predecessors)])

    def seal(self, text: str) -> str:
        """Encrypt a text."""
        return self._keys.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """Decrypt a text. Raises ``CannotDecrypt``."""
        try:
            return self._keys.decrypt(sealed).decode()
        except InvalidToken:
            raise CannotDecrypt from None


def _fernet(secret: str) -> Fernet:
    # A derived key, so that what signs tokens encrypts nothing.
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"jobapi secrets of webhooks")
    return Fernet(urlsafe_b64encode(derive.derive(secret.encode())))
