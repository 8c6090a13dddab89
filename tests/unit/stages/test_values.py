"""Stage values as JSON and back. Annotations here are objects; ``postponed`` has annotations as text."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Dict, Generic, List, Optional, Tuple, TypeVar, Union  # noqa: UP035 (old spellings are tested)

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.stored_response import StageKind
from open_idempotency._stages.annotations import declared_type
from open_idempotency._stages.values import decode, encode
from open_idempotency.exceptions import StageValueError
from tests.unit.stages import postponed
from tests.unit.stages.postponed import ORDER, Line, Order

LIMIT = 64 * 1024
T = TypeVar("T")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def through(value: object, declared: object = None) -> Any:
    """The value as a later attempt sees it."""
    return decode(*encode(value, declared, LIMIT), declared)


@given(json_values)
def test_json_comes_back_as_it_was(value: object) -> None:
    """S-02."""
    assert through(value) == value


def test_a_tuple_without_a_declaration_comes_back_as_a_list() -> None:
    """S-02: JSON has no tuples; the first attempt sees the same."""
    assert through((1, (2,))) == [1, [2]]


@pytest.mark.parametrize("declared", [Line, Optional[Line], Line | None, Union[Line, None]])  # noqa: UP007, UP045 (the old spelling)
def test_a_dataclass_comes_back_by_its_declared_type(declared: object) -> None:
    """S-02: PEP 604 unions too."""
    assert through(Line("a", 2), declared) == Line("a", 2)


def test_an_optional_dataclass_may_be_none() -> None:
    """S-02."""
    assert through(None, Line | None) is None


def test_a_nested_dataclass_with_postponed_annotations_comes_back_whole() -> None:
    """S-02: lists, dicts, tuples, optionals."""
    assert through(ORDER, Order) == ORDER


@pytest.mark.parametrize(
    "declared",
    [list[Line], List[Line], Sequence[Line], Optional[list[Line]]],  # noqa: UP006, UP045 (the old spelling)
)
def test_a_list_of_dataclasses_comes_back_by_its_declared_type(declared: object) -> None:
    """S-02."""
    assert through([Line("a"), Line("b")], declared) == [Line("a"), Line("b")]


@pytest.mark.parametrize("declared", [dict[str, Line], Dict[str, Line], Mapping[str, Line]])  # noqa: UP006 (the old spelling)
def test_a_mapping_of_dataclasses_comes_back_by_its_declared_type(declared: object) -> None:
    """S-02."""
    assert through({"x": Line("a")}, declared) == {"x": Line("a")}


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        ((Line("a"), 1), tuple[Line, int]),
        ((Line("a"), Line("b")), tuple[Line, ...]),
        ((1, 2), tuple),
        ((1, 2), Tuple),  # noqa: UP006 (the old spelling)
        ((), tuple[()]),
        ([1], list),
        ([1], List),  # noqa: UP006 (the old spelling)
        ({"a": 1}, dict),
        ({"a": 1}, Dict),  # noqa: UP006 (the old spelling)
        ([[1, 2]], list[list[int]]),
        ([(1, 2)], list[tuple[int, int]]),
    ],
)
def test_containers_come_back_by_their_declared_type(value: object, declared: object) -> None:
    """S-02: with and without arguments."""
    assert through(value, declared) == value
    assert type(through(value, declared)) is type(value)


@pytest.mark.parametrize("declared", [None, Any, object, dict, dict[str, Any], list[Line], int])
def test_a_dataclass_that_is_not_declared_is_refused_with_help(declared: object) -> None:
    """S-02: it would come back as a dict."""
    with pytest.raises(StageValueError, match="pass returns=Line"):
        encode(Line("a"), declared, LIMIT)


def test_a_dataclass_inside_an_undeclared_list_is_refused_with_help() -> None:
    """S-02."""
    with pytest.raises(StageValueError, match="pass returns=Line"):
        encode([Line("a")], None, LIMIT)


@dataclass
class Special(Line):
    """A subclass with a field that its parent lacks."""

    note: str = ""


def test_a_subclass_of_the_declared_class_is_refused() -> None:
    """S-02: it would come back as its parent."""
    with pytest.raises(StageValueError, match="Special needs a declared type"):
        encode(Special("a"), Line, LIMIT)


def test_a_dataclass_in_a_union_of_several_types_comes_back_as_its_own() -> None:
    """S-02: a mark distinguishes the two types."""
    for value in (Line("a"), Special("a", note="b")):
        assert through(value, Line | Special) == value
        assert type(through(value, Line | Special)) is type(value)


@dataclass
class Derived:
    """A dataclass with a computed field outside of ``__init__``."""

    base: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        self.double = self.base * 2


def test_a_field_outside_init_is_computed_anew() -> None:
    """S-02."""
    assert through(Derived(2), Derived) == Derived(2)


def test_a_field_that_the_recording_version_did_not_have_takes_its_default() -> None:
    """S-02: a record outlives a deploy."""
    assert decode(StageKind.VALUE, b'{"sku":"a"}', Line) == Line("a", 1)


def test_a_missing_member_without_a_default_is_a_typed_error() -> None:
    """S-02."""
    with pytest.raises(StageValueError, match="does not fit"):
        decode(StageKind.VALUE, b"{}", Line)


@dataclass
class Page(Generic[T]):
    """A generic dataclass."""

    items: list[T]


def test_a_generic_dataclass_of_plain_values_comes_back() -> None:
    """S-02."""
    assert through(Page([1, 2]), Page[int]) == Page([1, 2])


def test_a_generic_dataclass_of_dataclasses_is_refused_with_help() -> None:
    """S-02: its type variable names no class."""
    with pytest.raises(StageValueError, match="declared type"):
        encode(Page([Line("a")]), Page[Line], LIMIT)


class Money(pydantic.BaseModel):
    """A pydantic model with types that JSON lacks, an alias, and a computed field that is forbidden as input."""

    model_config = pydantic.ConfigDict(extra="forbid")
    amount: int = pydantic.Field(alias="amountMinor")
    at: datetime

    @pydantic.computed_field
    @property
    def doubled(self) -> int:
        """Derived."""
        return self.amount * 2


MONEY = Money(amountMinor=5, at=datetime(2024, 1, 2, tzinfo=timezone.utc))


@pytest.mark.parametrize(
    ("value", "declared"),
    [(MONEY, Money), (MONEY, Money | None), ([MONEY], list[Money]), ({"a": MONEY}, dict[str, Money])],
)
def test_a_pydantic_model_comes_back_by_its_declared_type(value: object, declared: object) -> None:
    """S-02: aliases and computed fields too."""
    assert through(value, declared) == value


def test_a_pydantic_model_that_is_not_declared_is_refused_with_help() -> None:
    """S-02."""
    with pytest.raises(StageValueError, match="pass returns=Money"):
        encode(MONEY, None, LIMIT)


def test_a_stored_value_that_the_model_refuses_is_a_typed_error() -> None:
    """S-02."""
    with pytest.raises(StageValueError):
        decode(StageKind.VALUE, b'{"amountMinor":"x"}', Money)


class Ids(pydantic.RootModel[list[int]]):
    """A model whose JSON is a plain list."""


def test_a_root_model_comes_back() -> None:
    """S-02."""
    assert through(Ids([1, 2]), Ids) == Ids([1, 2])


@dataclass
class Receipt:
    """A dataclass with models as fields."""

    paid: list[Money]


def test_models_inside_a_dataclass_come_back() -> None:
    """S-02."""
    assert through(Receipt([MONEY]), Receipt) == Receipt([MONEY])


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1: "a"}, {"a": {2: 1}}, b"bytes", {1, 2}, object(), datetime(2024, 1, 1), "\ud800"],
    ids=["nan", "inf", "int-name", "nested-int-name", "bytes", "set", "object", "datetime", "surrogate"],
)
def test_what_is_not_json_is_refused_when_it_is_saved(value: object) -> None:
    """S-02: the error is raised when the value is saved."""
    with pytest.raises(StageValueError, match=r"must be JSON, .* save a text"):
        encode(value, None, LIMIT)


def test_a_value_that_contains_itself_is_refused() -> None:
    """S-02, I11."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(StageValueError):
        encode(loop, None, LIMIT)


@pytest.mark.parametrize(("size", "accepted"), [(8, True), (9, False)])
def test_a_value_is_bounded_in_bytes(size: int, accepted: bool) -> None:
    """S-02: the bound counts the bytes of the JSON text, not its characters."""
    value = "é" * ((size - 2) // 2) + "x" * (size % 2)
    if accepted:
        assert len(encode(value, None, 8)[1]) == size
        return
    with pytest.raises(StageValueError, match=r"9 bytes is over max_stage_bytes \(8\)"):
        encode(value, None, 8)


DECLARED = st.sampled_from([None, Line, Order, list[Line], tuple[int, int], dict[str, Line], Money])


@given(st.binary(max_size=40), DECLARED)
def test_any_stored_bytes_are_a_value_or_a_typed_error(payload: bytes, declared: object) -> None:
    """B-08b."""
    try:
        decode(StageKind.VALUE, payload, declared)
    except StageValueError:
        return
    json.loads(payload)


@given(json_values, DECLARED | st.sampled_from([tuple[int, ...], Page[int]]))
def test_any_stored_json_is_a_value_or_a_typed_error(value: object, declared: object) -> None:
    """B-08b: whatever an older version recorded; without a declaration it is returned as JSON."""
    try:
        read = decode(StageKind.VALUE, json.dumps(value).encode(), declared)
    except StageValueError:
        assert declared is not None
        return
    assert declared is not None or read == value


def test_deep_stored_json_is_a_typed_error() -> None:
    """B-08b, I11."""
    with pytest.raises(StageValueError):
        decode(StageKind.VALUE, b"[" * 100_000 + b"]" * 100_000, None)


def test_a_scalar_in_place_of_a_declared_object_comes_back_as_it_was() -> None:
    """S-02: on the first attempt and on later ones; annotations are not enforced for plain values."""
    assert through("pending", Line) == "pending"
    assert through("ab", list[int]) == "ab"
    assert through("ab", tuple) == "ab"


def plain() -> int:
    """A function with a return annotation."""
    return 1


def nothing() -> None:
    """A function that returns None."""


def unresolvable() -> "Nowhere":  # noqa: F821 (it is not defined on purpose)
    """An annotation that names nothing."""


class Callable:
    """A callable object without annotations of its own."""

    def __call__(self) -> int:
        return 1


class Holder:
    """A class with a method."""

    def line(self) -> Line:
        """A line."""
        return Line("a")


@pytest.mark.parametrize(
    ("function", "declared"),
    [
        (plain, int),
        (nothing, None),
        (unresolvable, None),
        (lambda: 1, None),
        (len, None),
        (Callable(), None),
        (postponed.make_line, Line),
        (postponed.make_order, Order | None),
        (functools.partial(postponed.make_line), Line),
        (functools.partial(functools.partial(plain)), int),
        (Holder().line, Line),
        (Line, Line),
        (functools.partial(Line, "a"), Line),
    ],
)
def test_the_declared_type_of_a_function_is_what_it_is_annotated_to_return(function: Any, declared: object) -> None:
    """S-02: postponed annotations, coroutine functions, partials, methods, classes."""
    assert declared_type(function) == declared


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2]])
def test_plain_json_under_a_union_of_plain_types_comes_back_as_it_was(value: object) -> None:
    """S-02."""
    assert through(value, dict[str, int] | list[int]) == value


def test_stored_members_under_a_union_of_several_classes_are_a_typed_error() -> None:
    """S-02: the classes cannot be distinguished."""
    with pytest.raises(StageValueError, match="distinguished"):
        decode(StageKind.VALUE, b'{"sku":"a"}', Line | Special)
