"""Bodies that are put together from others."""

from collections.abc import Iterator
from inspect import get_annotations

import pytest

import jaxserve.server.app  # noqa: F401 (defines all bodies)
from jaxserve.frontend.schema.body import Body
from jaxserve.server.pooling.schema import EmbeddingChatBody, VectorsChatBody


def _subclasses(kind: type[Body]) -> Iterator[type[Body]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


@pytest.mark.parametrize("kind", sorted(set(_subclasses(Body)), key=str))
def test_a_field_of_two_bases_is_that_of_the_first_as_python_has_it(kind: type[Body]) -> None:
    # pydantic goes by the bases alone: what a base inherits hides what a later one declares.
    for name, field in kind.model_fields.items():
        owner = next(base for base in kind.__mro__ if name in get_annotations(base))
        declared = owner.model_fields[name]  # type: ignore[attr-defined]
        assert (field.annotation, field.default) == (declared.annotation, declared.default), name


@pytest.mark.parametrize("kind", [EmbeddingChatBody, VectorsChatBody])
def test_a_chat_to_embed_has_the_special_tokens_of_its_template_only(kind: type[Body]) -> None:
    body = kind.model_validate({"messages": [{"role": "user", "content": "a"}]})
    assert not getattr(body, "add_special_tokens")  # noqa: B009
