"""``EncryptionKeys``: a sealed value opens with its key and its binding, and with nothing else."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_idempotency.encryption import EncryptionKeys, Sealer, new_key
from open_idempotency.exceptions import ConfigurationError, MissingExtra, RecordUnreadable
from tests.effort import times

OLD, NEW = b"o" * 32, b"n" * 32
HERE, THERE = b"h" * 32, b"t" * 32
CIPHERS: tuple[Any, ...] = ("aes-256-gcm", "chacha20-poly1305")

bounded = settings(max_examples=times(50), deadline=None)


@pytest.mark.parametrize("cipher", CIPHERS)
@bounded
@given(plain=st.binary(max_size=300), place=st.binary(max_size=40))
def test_what_was_sealed_opens_at_its_place(cipher: Any, plain: bytes, place: bytes) -> None:
    """Encryption at rest: the same key and binding open it."""
    keys = EncryptionKeys({"2026": NEW}, cipher=cipher)
    assert keys.unseal(keys.seal(plain, place), place) == plain


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_is_sealed_shows_nothing_but_its_key_id_and_length(cipher: Any) -> None:
    """Equal plain bytes have different sealed bytes."""
    keys, plain = EncryptionKeys({"2026": NEW}, cipher=cipher), b"4111111111111111" * 4
    first, second = keys.seal(plain, HERE), keys.seal(plain, HERE)
    assert first != second
    assert b"4111" not in first
    assert b"2026" in first
    assert len(first) == len(second) == len(plain) + 2 + len("2026") + 12 + 16


def test_the_first_key_seals_and_all_open() -> None:
    """Keys can be rotated."""
    before, after = EncryptionKeys({"old": OLD}), EncryptionKeys({"new": NEW, "old": OLD})
    assert after.unseal(before.seal(b"card", HERE), HERE) == b"card"
    assert b"new" in after.seal(b"card", HERE)
    assert EncryptionKeys({"new": NEW}).unseal(after.seal(b"card", HERE), HERE) == b"card"


def test_a_key_that_is_made_known_first_opens_what_the_next_deploy_seals() -> None:
    """While workers of two deploys run side by side, each reads what the other has sealed."""
    announced, in_use = EncryptionKeys({"old": OLD, "new": NEW}), EncryptionKeys({"new": NEW, "old": OLD})
    assert announced.unseal(in_use.seal(b"1", HERE), HERE) == in_use.unseal(announced.seal(b"1", HERE), HERE) == b"1"


def test_each_cipher_opens_what_the_other_has_sealed() -> None:
    """The cipher can be changed as a key can."""
    aes, chacha = (EncryptionKeys({"k": NEW}, cipher=cipher) for cipher in CIPHERS)
    assert aes.unseal(chacha.seal(b"1", HERE), HERE) == chacha.unseal(aes.seal(b"1", HERE), HERE) == b"1"


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"2026": NEW}, THERE),
        ({"2026": NEW}, b""),
        ({"2026": OLD}, HERE),
        ({"2027": NEW}, HERE),
    ],
    ids=["moved", "of no place", "another key of that id", "an unknown key id"],
)
def test_what_does_not_belong_here_is_unreadable(keys: Any, place: bytes) -> None:
    """B-08b: the error is typed, whatever the reason."""
    sealed = EncryptionKeys({"2026": NEW}).seal(b"card", HERE)
    with pytest.raises(RecordUnreadable):
        EncryptionKeys(keys).unseal(sealed, place)


def test_a_key_does_not_open_what_is_passed_off_as_its_own() -> None:
    """B-08b: the key id in front is authenticated too."""
    keys = EncryptionKeys({"new": NEW, "old": NEW})
    with pytest.raises(RecordUnreadable):
        keys.unseal(keys.seal(b"card", HERE).replace(b"new", b"old"), HERE)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_change_of_any_bit_is_noticed(cipher: Any) -> None:
    """B-08b: in the header, the nonce, the text or the tag."""
    keys = EncryptionKeys({"k": NEW}, cipher=cipher)
    sealed = keys.seal(b"card", HERE)
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordUnreadable):
            keys.unseal(bytes(changed), HERE)


@bounded
@given(data=st.data())
def test_a_frame_that_is_cut_or_longer_is_unreadable(data: st.DataObject) -> None:
    """B-08b: the length is checked."""
    keys = EncryptionKeys({"k": NEW})
    sealed = keys.seal(b"card", HERE)
    end = data.draw(st.integers(0, len(sealed)))
    changed = sealed[:end] + data.draw(st.binary(min_size=end == len(sealed), max_size=5))
    if changed == sealed:
        return
    with pytest.raises(RecordUnreadable):
        keys.unseal(changed, HERE)


@bounded
@given(sealed=st.binary(max_size=80) | st.binary(max_size=80).map(lambda rest: b"\x01\x01k" + rest))
def test_any_bytes_are_a_typed_error(sealed: bytes) -> None:
    """B-08b: a hostile record is only refused."""
    with pytest.raises(RecordUnreadable):
        EncryptionKeys({"k": NEW}).unseal(sealed, HERE)


# Keys


def test_a_new_key_is_random_text_that_makes_a_key() -> None:
    """The text is meant for an environment variable."""
    assert new_key() != new_key()
    assert len(base64.urlsafe_b64decode(new_key())) == 32
    assert EncryptionKeys({"k": new_key()}).seal(b"", HERE)


def test_a_key_as_text_is_the_key_as_bytes() -> None:
    """Both alphabets of base64 are accepted."""
    raw = b"\xfb\xff" * 16
    texts = [base64.urlsafe_b64encode(raw).decode(), base64.b64encode(raw).decode()]
    assert texts[0] != texts[1]
    for text in texts:
        sealed = EncryptionKeys({"k": text}).seal(b"card", HERE)
        assert EncryptionKeys({"k": raw}).unseal(sealed, HERE) == b"card"


BAD: list[tuple[str, Any, str]] = [
    ("none at all", {}, "at least one key"),
    ("no mapping", [("k", NEW)], "at least one key"),
    ("a bare key", NEW, "at least one key"),
    ("short", {"2026": b"hunter2"}, "'2026' is 7 bytes, not 32 bytes; make one with new_key"),
    ("long", {"2026": NEW * 2}, "'2026' is 64 bytes"),
    ("short text", {"2026": "aHVudGVyMg=="}, "'2026' is 7 bytes"),
    ("no base64", {"2026": "hunter2!"}, "'2026' is not base64"),
    ("not ASCII", {"2026": "hünter2"}, "'2026' is not base64"),
    ("neither", {"2026": None}, "'2026' is NoneType"),
    ("no id", {"": NEW}, "a key id has"),
    ("a long id", {"k" * 65: NEW}, "a key id has"),
    ("an odd id", {"hunter2 ": NEW}, "a key id has"),
    ("an id that is no text", {1: NEW}, "a key id has"),
]


@pytest.mark.parametrize(("keys", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_keys_are_refused_at_start_and_not_repeated(keys: Any, said: str) -> None:
    """ConfigurationError names the field and what to do; it does not contain the key."""
    with pytest.raises(ConfigurationError, match=r"^encryption: ") as caught:
        EncryptionKeys(keys)
    assert said in str(caught.value)
    assert "unter2" not in str(caught.value)


def test_an_unknown_cipher_is_refused_at_start() -> None:
    """The constructor validates its options."""
    with pytest.raises(ConfigurationError, match=r"^encryption: cipher 'des' is none of 'aes-256-gcm', 'chacha"):
        EncryptionKeys({"k": NEW}, cipher="des")


def test_the_keys_are_not_shown() -> None:
    assert repr(EncryptionKeys({"new": NEW, "old": OLD})) == "<EncryptionKeys new, old>"


def test_without_the_library_the_error_has_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing extra names the install command."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r"pip install 'open-idempotency\[encryption\]'"):
        EncryptionKeys({"k": NEW})


def test_a_cipher_that_this_machine_lacks_is_found_out_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is not left to the first response that is stored."""
    from cryptography.exceptions import UnsupportedAlgorithm

    def lacking(key: bytes) -> Any:
        raise UnsupportedAlgorithm("ChaCha20Poly1305 is not supported by this version of OpenSSL")

    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.ChaCha20Poly1305", lacking)
    with pytest.raises(ConfigurationError, match="chacha20-poly1305 does not work on this machine"):
        EncryptionKeys({"k": NEW}, cipher="chacha20-poly1305")
    assert EncryptionKeys({"k": NEW}).seal(b"", HERE)


def test_the_keys_are_what_a_policy_takes() -> None:
    """Custom sealers implement the same protocol."""
    sealer: Sealer = EncryptionKeys({"k": NEW})
    assert sealer.unseal(sealer.seal(b"1", HERE), HERE) == b"1"
