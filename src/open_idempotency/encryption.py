"""Encryption of stored responses and stages, for the policy's ``encryption=``: the first key seals, all keys open.

``EncryptionKeys`` needs the extra ``encryption`` (the package ``cryptography``), which is imported when keys are made.
Any other object with the two methods of ``Sealer`` works too, such as one that keeps its keys in a KMS.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from open_idempotency._core.models import Sealer
from open_idempotency.exceptions import ConfigurationError, MissingExtra, RecordUnreadable

__all__ = ["EncryptionKeys", "Sealer", "new_key"]

Cipher = Literal["aes-256-gcm", "chacha20-poly1305"]

KEY_BYTES = 32
_NONCE_BYTES, _TAG_BYTES = 12, 16
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: the first byte of a sealed frame, which names the cipher
_CODES: Mapping[str, int] = {"aes-256-gcm": 1, "chacha20-poly1305": 2}


class _Aead(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...


def new_key() -> str:
    """A random key for ``EncryptionKeys``, as text for a secret manager or the environment (44 characters)."""
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode("ascii")


class EncryptionKeys:
    """Keys by id, newest first: the first seals, all of them open. Pass it to the policy as ``encryption=``.

    ``keys``: ids (1 to 64 of ``A-Z a-z 0-9 . _ -``; they are stored with each sealed frame) and keys of 32 bytes, or
    their text form from ``new_key()``. ``cipher``: ``"aes-256-gcm"``, or ``"chacha20-poly1305"`` for machines without
    AES in hardware; frames of both are opened.

    Every frame has its own key, which is derived from the given one and the frame's position in its record. So a key
    need not be changed after any number of frames. Safe in threads and after a fork. Raises ``ConfigurationError`` for
    bad keys, ``MissingExtra`` without ``cryptography``. Since 0.1.
    """

    __slots__ = ("_ciphers", "_code", "_ids", "_keys")

    def __init__(self, keys: Mapping[str, bytes | str], *, cipher: Cipher = "aes-256-gcm") -> None:
        if not isinstance(keys, Mapping) or not keys:
            raise ConfigurationError("encryption: expected at least one key, as {'2026-11': new_key()}")
        if cipher not in _CODES:
            raise ConfigurationError(f"encryption: cipher {cipher!r} is none of {', '.join(map(repr, _CODES))}")
        self._keys = {_checked_id(name): _checked_key(name, key) for name, key in keys.items()}
        self._ids = tuple(self._keys)
        self._code = _CODES[cipher]
        self._ciphers = _ciphers()
        self._try_out(cipher)

    def __repr__(self) -> str:
        return f"<EncryptionKeys {', '.join(self._ids)}>"

    def seal(self, plain: bytes, bound_to: bytes, /) -> bytes:
        """The sealed form: cipher, key id, nonce, and the encrypted bytes with their tag."""
        name = self._ids[0]
        nonce = os.urandom(_NONCE_BYTES)
        head = bytes((self._code, len(name))) + name.encode("ascii")
        return head + nonce + self._aead(self._code, name, bound_to).encrypt(nonce, plain, head + bound_to)

    def unseal(self, sealed: bytes, bound_to: bytes, /) -> bytes:
        """The plain bytes. Raises ``RecordUnreadable`` for a changed, moved or cut frame, and for an unknown key."""
        start = 2 + (sealed[1] if len(sealed) > 1 else 0)
        head, nonce, rest = sealed[:start], sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        if len(rest) < _TAG_BYTES:
            raise RecordUnreadable("a sealed frame is cut short")
        name = head[2:].decode("ascii", "backslashreplace")
        if head[0] not in self._ciphers or name not in self._keys:
            raise RecordUnreadable(f"a frame is sealed with key {name!r} by cipher {head[0]}, unknown here")
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead(head[0], name, bound_to).decrypt(nonce, rest, head + bound_to)
        except InvalidTag as error:
            raise RecordUnreadable("a sealed frame was changed, moved, or made with another key") from error

    def _aead(self, code: int, name: str, bound_to: bytes) -> _Aead:
        return self._ciphers[code](hmac.digest(self._keys[name], b"oi-frame-key-1" + bound_to, "sha256"))

    def _try_out(self, cipher: Cipher) -> None:
        """Try the cipher, so that an unsupported one is reported at start and not at the first response."""
        try:
            self.seal(b"", b"")
        except Exception as error:
            raise ConfigurationError(
                f"encryption: {cipher} does not work on this machine; use the other cipher"
            ) from error


def _ciphers() -> Mapping[int, Callable[[bytes], _Aead]]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise MissingExtra(
            "encryption: EncryptionKeys needs the cryptography package: pip install 'open-idempotency[encryption]'"
        ) from error
    return {_CODES["aes-256-gcm"]: AESGCM, _CODES["chacha20-poly1305"]: ChaCha20Poly1305}


def _checked_id(name: object) -> str:
    if not isinstance(name, str) or not _ID.fullmatch(name):
        # The name is not repeated: if key and id are swapped, it is the key.
        raise ConfigurationError("encryption: a key id has 1 to 64 characters of A-Z a-z 0-9 . _ -, such as '2026-11'")
    return name


def _checked_key(name: str, key: object) -> bytes:
    """The key's bytes. The error for a wrong key repeats no part of it."""
    raw = key
    if isinstance(key, str):
        try:
            raw = base64.b64decode(key.translate(_STANDARD).encode("ascii"), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(f"encryption: key {name!r} is not base64; make one with new_key()") from None
    if not isinstance(raw, bytes) or len(raw) != KEY_BYTES:
        size = f"{len(raw)} bytes" if isinstance(raw, bytes) else type(raw).__name__
        raise ConfigurationError(f"encryption: key {name!r} is {size}, not {KEY_BYTES} bytes; make one with new_key()")
    return raw


_STANDARD = str.maketrans("-_", "+/")
