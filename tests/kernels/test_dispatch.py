"""Backend selection: the first that supports a case, and the reasons for refusals."""

import logging

import pytest

from pallas_kernels.dispatch import Choice, Unsupported, choose


def accept() -> None:
    pass


def refuse_pages() -> None:
    raise Unsupported("no pages")


def refuse_bfloat16() -> None:
    raise Unsupported("no bfloat16")


def break_down() -> None:
    raise NotImplementedError("deep inside")


def test_first_that_accepts_is_chosen_with_the_reasons_of_those_before() -> None:
    checks = {"a": refuse_pages, "b": accept, "c": refuse_bfloat16}
    assert choose("op", checks, None) == Choice("b", (("a", "no pages"),))


def test_backend_asked_for_is_taken_before_better_ones() -> None:
    assert choose("op", {"a": accept, "b": accept}, "b") == Choice("b")


def test_backend_asked_for_that_refuses_is_not_replaced() -> None:
    with pytest.raises(Unsupported, match=r"no backend accepts this case: a: no pages$"):
        choose("op", {"a": refuse_pages, "b": accept}, "a")


def test_every_reason_is_given_when_all_refuse() -> None:
    with pytest.raises(Unsupported, match="a: no bfloat16; b: no pages"):
        choose("op", {"a": refuse_bfloat16, "b": refuse_pages}, None)


def test_errors_that_are_no_refusals_pass_through() -> None:
    with pytest.raises(NotImplementedError):
        choose("op", {"broken": break_down, "fine": accept}, None)


def test_unknown_backend_is_an_error_that_names_all() -> None:
    with pytest.raises(ValueError, match="op: backend must be one of a, b, got 'c'"):
        choose("op", {"a": accept, "b": accept}, "c")


def test_choice_reads_as_name_and_refusals() -> None:
    assert str(Choice("b", (("a", "no pages"), ("x", "no y")))) == "b (a: no pages; x: no y)"


def test_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            choose("logged_op", {"a": refuse_pages, "b": accept}, None)
    assert caplog.messages == ["logged_op runs on b (a: no pages)"]
