"""Principals of API keys, and policies in their order."""

import asyncio
from dataclasses import dataclass, field

import pytest

from jaxserve.access.keyring import Keyring
from jaxserve.access.policy import Admission, Demand, Policies, Policy, Used
from jaxserve.access.principal import Principal
from jaxserve.errors import InvalidRequestError

DEMAND = Demand(model="m", requests=())


@dataclass
class Rule(Policy):
    """Policy that records its calls, and refuses given tenants."""

    refuses: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list[str])
    settled: list[Used] = field(default_factory=list[Used])

    async def admit(self, principal: Principal, demand: Demand) -> Admission:
        assert demand is DEMAND
        self.asked.append(principal.tenant)
        if principal.tenant in self.refuses:
            raise InvalidRequestError("refused", param=None)
        return Settled(self.settled)


@dataclass
class Settled(Admission):
    to: list[Used]

    def settle(self, used: Used) -> None:
        self.to.append(used)


def test_a_key_without_a_name_is_a_tenant_of_its_own() -> None:
    keyring = Keyring(["sk-a", "sk-b"])
    a, b = keyring.principal("sk-a"), keyring.principal("sk-b")
    assert a is not None
    assert b is not None
    assert a.tenant != b.tenant
    assert "sk-a" not in repr(a)
    assert keyring.renamed_tenants == {}


def test_keys_of_one_name_are_one_tenant_that_tells_them_apart() -> None:
    keyring = Keyring(["sk-old", "sk-new", "sk-b"], names=["acme", "acme", "b"])
    old, new, b = (keyring.principal(key) for key in ("sk-old", "sk-new", "sk-b"))
    assert old is not None
    assert new is not None
    assert b is not None
    assert (old.tenant, new.tenant, b.tenant) == ("acme", "acme", "b")
    assert old.name != new.name


def test_an_unknown_key_has_no_principal() -> None:
    assert Keyring(["sk-a"]).principal("sk-b") is None
    assert Keyring([]).principal("") is None


def test_named_keys_tell_how_their_tenants_were_called() -> None:
    unnamed = Keyring(["sk-a"]).principal("sk-a")
    assert unnamed is not None
    named = Keyring(["sk-a"], names=["acme"])
    assert named.renamed_tenants == {unnamed.tenant: "acme"}


def test_every_policy_settles_what_was_used() -> None:
    rules = [Rule(), Rule()]
    used = Used(prompt_tokens=3, completion_tokens=2)
    admission = asyncio.run(Policies(rules).admit(Principal("a"), DEMAND))
    assert [rule.settled for rule in rules] == [[], []]
    admission.settle(used)
    assert [rule.settled for rule in rules] == [[used], [used]]


def test_a_refusal_ends_the_order_and_releases_what_was_admitted() -> None:
    rules = [Rule(), Rule(refuses=frozenset({"b"})), Rule()]
    with pytest.raises(InvalidRequestError, match="refused"):
        asyncio.run(Policies(rules).admit(Principal("b"), DEMAND))
    assert [rule.asked for rule in rules] == [["b"], ["b"], []]
    assert [rule.settled for rule in rules] == [[Used()], [], []]
