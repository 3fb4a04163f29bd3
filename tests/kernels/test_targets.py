"""Hardware by name: what JAX's devices are taken for, and what is simulated on a CPU."""

from dataclasses import dataclass

import jax
import pytest

from pallas_kernels.targets import (
    CPU,
    SIMULATE,
    TARGETS,
    Target,
    current_target,
    find_target,
    target_of,
)


@dataclass
class FakeDevice:
    """Properties that a device reports."""

    device_kind: str
    platform: str
    compute_capability: str = "12.0"
    core_count: int = 188


@pytest.mark.parametrize(
    ("kind", "platform", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "gpu", "h100"),
        ("NVIDIA H200", "gpu", "h200"),
        ("NVIDIA B200", "gpu", "b200"),
        ("NVIDIA A100-SXM4-80GB", "gpu", "a100"),
        ("TPU v4", "tpu", "v4"),
        ("TPU v5 lite", "tpu", "v5e"),
        ("TPU v5", "tpu", "v5p"),
        ("TPU v5p", "tpu", "v5p"),
        ("TPU v6 lite", "tpu", "v6e"),
        ("TPU7x", "tpu", "v7x"),
    ],
)
def test_device_is_recognised_by_its_kind(kind: str, platform: str, name: str) -> None:
    assert target_of(FakeDevice(kind, platform)) is TARGETS[name]


def test_unknown_gpu_is_described_by_what_it_tells() -> None:
    device = FakeDevice("NVIDIA RTX PRO 6000", "gpu")
    wanted = Target(name="NVIDIA RTX PRO 6000", platform="cuda", architecture="12.0", cores=188)
    assert target_of(device) == wanted


def test_unknown_accelerator_is_its_own_architecture() -> None:
    target = target_of(FakeDevice("TPU v9", "tpu"))
    assert (target.name, target.architecture) == ("TPU v9", "TPU v9")


def test_cpu_is_what_jax_runs_on_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIMULATE, raising=False)
    assert current_target() == target_of(jax.devices()[0]) == CPU


def test_target_that_the_environment_names_is_simulated_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SIMULATE, "v5e")
    assert current_target() == find_target("v5e").simulated()
    assert current_target().is_simulated


def test_unknown_target_is_an_error_that_names_all() -> None:
    with pytest.raises(ValueError, match=r"one of h100, h200, .*v7x, got 'h300'"):
        find_target("h300")


def test_simulating_changes_nothing_else_about_a_target() -> None:
    h200 = find_target("h200")
    simulated = h200.simulated()
    assert not h200.is_simulated
    assert (simulated.name, simulated.architecture, simulated.cores) == ("h200", "9.0", 132)


def test_every_target_says_how_fast_it_is_and_what_it_holds() -> None:
    assert all(target.bandwidth and target.flops for target in TARGETS.values())
    assert all(target.memory_bytes for target in TARGETS.values())
