"""Values that JSON does not have, by declared type: each comes back equal and of the same type (S-02)."""

from __future__ import annotations

import collections
import enum
import typing
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from open_idempotency._core.stored_response import StageKind
from open_idempotency._stages.annotations import declared_type
from open_idempotency._stages.values import check, decode, encode
from open_idempotency.exceptions import StageValueError

LIMIT = 64 * 1024
BERLIN = ZoneInfo("Europe/Berlin")


class Paint(enum.Enum):
    """An enum with values of every kind, some of which JSON does not have."""

    RED = "red"
    ONE = 1
    PAIR = (1, 2)
    NOTHING = None


class Level(str, enum.Enum):
    """A text enum."""

    LOW = "low"
    HIGH = "high"


class Right(enum.IntFlag):
    """A flag enum."""

    READ = 1
    WRITE = 2


class Point(NamedTuple):
    """A named tuple."""

    x: Decimal
    at: datetime | None = None


class Row(TypedDict):
    """A typed dict."""

    id: UUID
    day: NotRequired[date]


@dataclass
class Leg:
    """A dataclass with types that JSON does not have."""

    id: UUID
    money: Decimal
    at: datetime
    tags: frozenset[str] = frozenset()
    level: Level | None = None
    seats: dict[int, Decimal] = field(default_factory=dict)


class Ticket(pydantic.BaseModel):
    """A model with types that JSON does not have, some of which pydantic's own JSON loses."""

    id: UUID
    raw: bytes
    rate: float
    paint: Paint
    legs: list[Leg]
    by_day: dict[date, timedelta]
    either: datetime | str


class Encoded(pydantic.BaseModel):
    """A model with bytes in base64, which can be read back only from JSON."""

    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", strict=True)
    raw: bytes
    day: date


LEG = Leg(
    uuid4(), Decimal("1.10"), datetime(2026, 1, 2, tzinfo=timezone.utc), frozenset({"a"}), Level.LOW, {3: Decimal(2)}
)
TICKET = Ticket(
    id=uuid4(),
    raw=b"\xff\x00",
    rate=float("inf"),
    paint=Paint.PAIR,
    legs=[LEG],
    by_day={date(2026, 1, 1): timedelta(days=-1, microseconds=1)},
    either="2026-01-02T00:00:00",
)
Amount = NewType("Amount", Decimal)


def through(value: object, declared: object) -> Any:
    """The value as a later attempt sees it."""
    return decode(*encode(value, declared, LIMIT), declared)


VALUES: list[tuple[object, object]] = [
    (LEG.id, UUID),
    (Decimal("1.10"), Decimal),
    (Decimal("-0E+7"), Decimal),
    (Decimal("Infinity"), Decimal),
    (datetime(2026, 1, 2, 3, 4, 5, 6), datetime),
    (datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=5, minutes=45, seconds=1))), datetime),
    (datetime(2026, 7, 1, tzinfo=BERLIN), datetime),
    (date(1, 1, 1), date),
    (time(23, 59, 59, 999999), time),
    (time(1, 2, tzinfo=BERLIN), time),
    (timedelta.max, timedelta),
    (timedelta.min, timedelta),
    (b"\x00\xff", bytes),
    (bytearray(b"a"), bytearray),
    (Paint.RED, Paint),
    (Paint.ONE, Paint),
    (Paint.PAIR, Paint),
    (Paint.NOTHING, Paint),
    (Level.HIGH, Level),
    (Right.READ | Right.WRITE, Right),
    ({1, 2}, set[int]),
    (frozenset({Decimal(1)}), frozenset[Decimal]),
    (set(), set),
    ((Decimal(1), 2), tuple[Decimal, int]),
    ((date(2026, 1, 1),), tuple[date, ...]),
    ([[Decimal("1.0")]], list[list[Decimal]]),
    ({"a": datetime(2026, 1, 1)}, dict[str, datetime]),
    ({1: "a", -2: "b"}, dict[int, str]),
    ({UUID(int=1): {Level.LOW: 1.5}}, dict[UUID, dict[Level, float]]),
    ({(1, 2): "a"}, dict[tuple[int, int], str]),
    (None, Optional[Decimal]),  # noqa: UP045 (the old spelling)
    (Decimal(1), Optional[Decimal]),  # noqa: UP045 (the old spelling)
    (Decimal(1), Union[Decimal, str]),  # noqa: UP007 (the old spelling)
    ("1", Decimal | str),
    ("2026-01-01", datetime | date | str),
    (date(2026, 1, 1), datetime | date | str),
    (datetime(2026, 1, 1), datetime | date | str),
    ([Decimal(1)], list[datetime] | list[Decimal]),
    ({"a": 1}, dict[str, int] | Leg),
    ({"~": "", "value": 1}, dict[str, int] | Leg),
    ({"~": "", "value": 1}, dict[str, int] | str),
    (LEG, dict[str, int] | Leg | Ticket),
    (TICKET, Leg | Ticket | None),
    (float("-inf"), float),
    (float("inf"), int | float),
    (Point(Decimal(1), datetime(2026, 1, 1)), Point),
    ([Point(Decimal(1))], list[Point]),
    ({"id": LEG.id, "day": date(2026, 1, 1)}, Row),
    (LEG, Leg),
    ({"a": [LEG]}, dict[str, list[Leg]]),
    (TICKET, Ticket),
    ([TICKET], list[Ticket]),
    (Encoded(raw=b"\xff", day=date(2026, 1, 1)), Encoded),
    (Decimal(1), Annotated[Decimal, "money"]),
    (LEG, Annotated[Leg, "leg"]),
    (Decimal(1), Amount),
    (Level.LOW, Literal["low"]),
    # a wrong annotation of a plain value is harmless
    ("x", UUID),
    (5, Decimal),
    ("nan", float),
    ("purple", Level),
    ({"name": "RED"}, Paint),
    (True, datetime),
    ([1], Decimal),
]


@pytest.mark.parametrize(("value", "declared"), VALUES, ids=[f"{kind}-{at}" for at, (_, kind) in enumerate(VALUES)])
def test_what_is_declared_comes_back_as_it_was(value: object, declared: object) -> None:
    """S-02: equal, and of the same type."""
    back = through(value, declared)
    assert back == value
    assert declared == Literal["low"] or type(back) is type(value)


@pytest.mark.parametrize("value", [float("nan"), Decimal("NaN"), Decimal("sNaN123")])
def test_what_is_no_number_comes_back_as_it_was(value: Any) -> None:
    """S-02: NaN equals nothing, not even itself."""
    back = through(value, type(value))
    assert (type(back), repr(back)) == (type(value), repr(value))


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("zone", [None, BERLIN])
def test_the_hour_that_comes_twice_stays_the_one_it_was(fold: int, zone: ZoneInfo | None) -> None:
    """S-02: fold and zone are stored, so that durations across a clock change are the same."""
    back = through(datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold), datetime)
    assert (back.fold, back.tzinfo) == (fold, zone)


def test_decimals_keep_their_digits() -> None:
    """S-02: 1.10 is not 1.1 on an invoice."""
    assert str(through(Decimal("1.10"), Decimal)) == "1.10"


def test_a_model_comes_back_field_by_field_where_its_json_is_another_value() -> None:
    """S-02: bytes, infinities, enums of tuples; and a text that looks like a date stays a text."""
    back = through(TICKET, Ticket)
    assert (back.raw, back.rate, back.paint, back.legs, back.either) == (
        TICKET.raw,
        TICKET.rate,
        Paint.PAIR,
        [LEG],
        TICKET.either,
    )
    assert type(back.either) is str


class Masked(pydantic.BaseModel):
    """A model whose JSON has asterisks instead of its secret."""

    secret: pydantic.SecretStr | None = None
    raw: bytes = b""


class Nested(pydantic.BaseModel):
    """A model with a ``Masked`` field."""

    masked: dict[str, list[Masked]]


class Extra(pydantic.BaseModel, extra="allow"):
    """A model that accepts extra members."""


class Unmasked(pydantic.BaseModel):
    """A model whose JSON has its secret in plain text."""

    secret: pydantic.SecretStr

    @pydantic.field_serializer("secret", when_used="json")
    def _write(self, secret: pydantic.SecretStr) -> str:
        return secret.get_secret_value()


class Held(pydantic.BaseModel):
    """A model with secrets in fields of many types."""

    raw: pydantic.SecretBytes | None = None
    keys: dict[pydantic.SecretStr, int] = {}
    queue: collections.deque[pydantic.SecretStr] = collections.deque()
    mixed: set[pydantic.SecretStr | str] = set()


class Label(pydantic.BaseModel, frozen=True):
    """A hashable model, for sets."""

    name: str


class Hiding(pydantic.BaseModel, frozen=True):
    """A hashable model with a secret."""

    secret: pydantic.SecretStr | None = None


class Labelled(pydantic.BaseModel):
    """A model that ``model_dump()`` cannot convert to Python types, since a dict is not hashable."""

    labels: set[Label] = set()
    hiding: frozenset[Hiding] = frozenset()


class ForJson(pydantic.BaseModel):
    """A model whose serializer is used for JSON alone."""

    name: str

    @pydantic.model_serializer
    def _write(self, info: pydantic.SerializationInfo) -> dict[str, str]:
        if info.mode != "json":
            raise RuntimeError("this model is written as JSON only")
        return {"name": self.name}


class Opened(pydantic.BaseModel):
    """A model with a method named like that of a secret; it hides nothing."""

    name: str

    def get_secret_value(self) -> str:
        return self.name


class OpenedLevel(str, enum.Enum):
    """An enum with such a method."""

    HIGH = "high"

    def __str__(self) -> str:
        return self.value

    def get_secret_value(self) -> str:
        return self.value


class WithOpened(pydantic.BaseModel):
    """A model with both as fields."""

    opened: Opened
    level: OpenedLevel


CARD = pydantic.SecretStr("4111")


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (CARD, None),
        (CARD, pydantic.SecretStr),
        (CARD, str | pydantic.SecretStr),
        (pydantic.SecretBytes(b"4111"), pydantic.SecretBytes),
        ({"card": [CARD]}, dict[str, list[pydantic.SecretStr]]),
        (Masked(secret=CARD), Masked),
        (Masked(secret=CARD, raw=b"\xff"), Masked),
        (Masked(secret=CARD), Masked | Unmasked),
        (Nested(masked={"main": [Masked(secret=CARD)]}), Nested),
        (Extra.model_validate({"card": CARD}), Extra),
        (Held(raw=pydantic.SecretBytes(b"4111")), Held),
        (Held(keys={CARD: 1}), Held),
        (Held(queue=collections.deque([CARD])), Held),
        *((Held(mixed={CARD, *map(str, range(count))}), Held) for count in range(5)),
        (Labelled(hiding=frozenset({Hiding(secret=CARD)})), Labelled),
    ],
)
def test_a_secret_that_would_be_stored_as_stars_is_refused(value: object, declared: object) -> None:
    """S-09: neither the asterisks nor the secret are stored, and the error says what to do."""
    with pytest.raises(StageValueError, match=r"hides a secret.*get_secret_value\(\)") as refused:
        encode(value, declared, LIMIT)
    assert "4111" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        Unmasked(secret=CARD),
        Masked(),
        Masked(secret=pydantic.SecretStr("")),
        Masked(raw=b"\xff"),
        Label(name="**********"),
        Held(),
        Labelled(labels={Label(name="a")}, hiding=frozenset({Hiding()})),
        ForJson(name="a"),
        WithOpened(opened=Opened(name="a"), level=OpenedLevel.HIGH),
    ],
)
def test_a_model_without_stars_is_stored(value: pydantic.BaseModel) -> None:
    """S-09: it has a serializer for its secret, or no secret at all."""
    check(type(value))
    assert through(value, type(value)) == value


@pytest.mark.parametrize(
    ("value", "declared"),
    [(1, int), ({"a": [1, 2.5]}, None), ([1], list[int] | dict[str, int]), ("a", Decimal | str), (None, Decimal)],
)
def test_plain_values_are_written_as_ever(value: object, declared: object) -> None:
    """S-02: workers of an earlier version read them during a deploy."""
    assert encode(value, declared, LIMIT)[0] is StageKind.VALUE


@pytest.mark.parametrize(("value", "declared"), [(Decimal(1), Decimal), ({1: 2}, dict[int, int]), (LEG, Leg)])
def test_typed_values_are_of_a_kind_that_an_earlier_version_does_not_know(value: object, declared: object) -> None:
    """S-02, B-08b: an earlier version refuses the record instead of giving a view a text instead of a decimal."""
    assert encode(value, declared, LIMIT)[0] is StageKind.TYPED


def test_a_plain_payload_is_read_as_an_earlier_version_wrote_it() -> None:
    """S-02: a text under a wrong annotation came back as a text."""
    assert decode(StageKind.VALUE, b'"low"', Level) == "low"
    assert decode(StageKind.VALUE, b'"x"', Decimal) == "x"
    assert decode(StageKind.VALUE, b"[1]", set[int]) == [1]


@pytest.mark.parametrize(
    ("value", "declared", "cure"),
    [
        (Decimal(1), None, "returns=Decimal"),
        ({"at": datetime(2026, 1, 1)}, None, "returns=datetime"),
        ([UUID(int=1)], list, "returns=UUID"),
        ({1, 2}, None, "returns=set"),
        (Paint.RED, None, "returns=Paint"),
        ({1: 2}, None, r"dict\[int, ...\]"),
        (object(), None, "give default= or reconcile="),
        (datetime(2026, 1, 1), date, "give default= or reconcile="),
        ([1], dict, "returns=list"),
        ("x" * LIMIT, None, "save an id"),
    ],
)
def test_what_cannot_be_kept_says_what_to_do(value: object, declared: object, cure: str) -> None:
    """S-02a: annotate the type, or save another value."""
    with pytest.raises(StageValueError, match=cure) as caught:
        encode(value, declared, LIMIT)
    assert caught.value.cure


class Hostile:
    """A class that raises while it is written."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @classmethod
    def model_validate(cls, value: object) -> Hostile:
        """Never reached."""
        raise AssertionError(value)

    def model_dump(self, **options: object) -> object:
        """Raise it."""
        raise self.error


@pytest.mark.parametrize(
    "error", [NameError("x"), AttributeError("x"), KeyError("x"), RuntimeError("x"), MemoryError()]
)
def test_whatever_a_class_raises_while_it_is_written_is_one_error(error: Exception) -> None:
    """S-02a: the effect has happened, and must be recorded all the same."""
    with pytest.raises(StageValueError):
        encode(Hostile(error), Hostile, LIMIT)


class Receipt:
    """An object of a client library."""


@dataclass
class Bill:
    """A dataclass with a field that cannot be stored."""

    receipt: Receipt


@dataclass
class Trace:
    """A dataclass with optional fields."""

    receipt: Receipt | None = None
    errors: list[Receipt] = field(default_factory=list)
    raw: Any = None


@pytest.mark.parametrize(
    "declared",
    [Receipt, Receipt | None, list[Receipt], dict[str, Receipt], tuple[int, Receipt], Receipt | Exception, Bill,
     Iterator[int], complex, type[int], collections.deque, Annotated[Receipt, 1]],
    ids=str,
)  # fmt: skip
def test_a_type_of_which_nothing_can_be_kept_is_known_before_the_effect(declared: object) -> None:
    """S-02a: by its declaration alone."""
    with pytest.raises(StageValueError, match="no value of the declared type"):
        check(declared)


@pytest.mark.parametrize(
    "declared",
    [None, Any, object, int, str, dict, list[Any], Receipt | dict[str, int], Trace, Leg, Ticket, Paint, Point, Row,
     Decimal, set[UUID], typing.Hashable, typing.SupportsInt, typing.TypeVar("T"), Literal[1], Level, Amount],
    ids=str,
)  # fmt: skip
def test_a_type_of_which_something_can_be_kept_is_let_through(declared: object) -> None:
    """S-02a: an uncertain type is decided when a value is saved."""
    check(declared)


def future() -> Awaitable[Decimal]:
    """A sync function that is annotated to return an awaitable of a Decimal."""
    raise NotImplementedError


def coroutine() -> Coroutine[Any, Any, None]:
    """A sync function that is annotated to return a coroutine without a result."""
    raise NotImplementedError


def partly(order: Nowhere) -> Decimal:  # noqa: F821 (imported for type checkers only, say)
    """A function with one annotation that can be resolved, and one that cannot."""
    raise NotImplementedError


@pytest.mark.parametrize(("function", "declared"), [(future, Decimal), (coroutine, None), (partly, Decimal)])
def test_the_declared_type_is_found_behind_what_is_in_its_way(function: Any, declared: object) -> None:
    """S-02: behind an awaitable, and beside an unresolvable annotation of a parameter."""
    assert declared_type(function) == declared


def test_a_member_whose_annotation_cannot_be_resolved_declares_nothing() -> None:
    """S-02: the other members of a class that was defined in a function do."""

    class Inner:
        """A class that is known in this function only."""

    @dataclass
    class Local:
        """A dataclass with a field of that class."""

        at: datetime
        inner: Inner | None = None

    value = Local(datetime(2026, 1, 1))
    assert through(value, Local) == value


ZONES = [None, timezone.utc, timezone(timedelta(hours=-3, minutes=-30)), BERLIN, ZoneInfo("Asia/Kathmandu")]
moments = st.datetimes(timezones=st.sampled_from(ZONES), allow_imaginary=False)
SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False)),
    (datetime, moments),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (bytes, st.binary(max_size=20)),
    (Level, st.sampled_from(Level)),
    (Paint, st.sampled_from(Paint)),
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (str, st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    (bool, st.booleans()),
]


@st.composite
def declared_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A strategy for a type and values of it."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        return draw(st.sampled_from(SCALARS))
    shape = draw(st.sampled_from(["list", "set", "dict", "tuple", "optional", "union"]))
    inner, items = draw(declared_values(depth=0 if shape in ("set", "union") else depth - 1))
    other, others = draw(declared_values(depth=0))
    return {
        "list": (list[inner], st.lists(items, max_size=3)),
        "set": (set[inner], st.sets(items, max_size=3)),
        "dict": (dict[other, inner], st.dictionaries(others, items, max_size=3)),
        "tuple": (tuple[inner, other], st.tuples(items, others)),
        "optional": (Optional[inner], st.none() | items),  # noqa: UP045 (the old spelling)
        "union": (Union[inner, other], items | others),  # noqa: UP007 (the old spelling)
    }[shape]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_value_of_any_declared_type_comes_back_as_it_was(data: st.DataObject) -> None:
    """S-02: types are nested to any depth."""
    declared, strategy = data.draw(declared_values())
    value = data.draw(strategy)
    assert _same(through(value, declared), value)


def _same(back: Any, value: Any) -> bool:
    """Whether two values are equal and of one type, at every depth."""
    if type(back) is not type(value):
        return False
    if isinstance(value, list | tuple):
        return len(back) == len(value) and all(map(_same, back, value))
    if isinstance(value, datetime):  # moments in the hour that comes twice equal none of another zone
        return (back.replace(tzinfo=None), back.utcoffset()) == (value.replace(tzinfo=None), value.utcoffset())
    if isinstance(value, dict) and not any(isinstance(key, datetime) for key in value):
        return back.keys() == value.keys() and all(_same(back[key], value[key]) for key in value)
    return isinstance(value, dict | set) or back == value


@given(st.binary(max_size=40), st.sampled_from([kind for _, kind in VALUES]))
def test_any_stored_bytes_are_a_value_or_one_error(payload: bytes, declared: object) -> None:
    """B-08b: under every declaration."""
    try:
        decode(StageKind.TYPED, payload, declared)
    except StageValueError:
        return


def test_aliases_of_types_are_looked_through() -> None:
    """S-02: ``type Sum = Decimal``."""
    assert through(Decimal(1), TypeAliasType("Sum", Decimal)) == Decimal(1)
