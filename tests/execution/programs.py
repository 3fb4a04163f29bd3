"""Compiled steps of models that never exist: described, compiled, read."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax

from jaxserve.api.caches import CacheSizes, plan_layout
from jaxserve.execution.attention import AttentionPlan, plan_attention
from jaxserve.execution.context import StepContext
from jaxserve.execution.heads.sample import sample_head
from jaxserve.execution.programs import ProgramSet, State
from jaxserve.execution.shapes import StepShape
from jaxserve.layers.routing import Routing
from jaxserve.models import DecoderConfig, MixtureOfExperts, abstract_params, config_from_hf
from jaxserve.models.hf_moe import with_experts
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout
from pallas_kernels.targets import CPU

PAGES = 32


def decoder(
    *,
    embed: int,
    ffw: int,
    num_layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab_size: int,
    tied: bool = True,
) -> DecoderConfig:
    """Return a Llama of these sizes."""
    return config_from_hf(
        {
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": embed,
            "intermediate_size": ffw,
            "num_hidden_layers": num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied,
        }
    )


def with_attention(model: DecoderConfig, **changes: Any) -> DecoderConfig:
    """Return the model with other attention in every layer."""
    layers = (replace(layer, mixer=_replaced(layer.mixer, changes)) for layer in model.layers)
    return replace(model, layers=tuple(layers))


def with_feed_forward(model: DecoderConfig, **changes: Any) -> DecoderConfig:
    """Return the model with other feed-forwards in every layer."""
    layers = (
        replace(layer, feed_forward=_replaced(layer.feed_forward, changes))
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers))


def _replaced(part: Any, changes: dict[str, Any]) -> Any:
    return replace(part, **changes)


SMALL = decoder(embed=64, ffw=172, num_layers=1, heads=8, kv_heads=4, head_dim=8, vocab_size=512)
# 60 million parameters, two heads of 32,000 words included.
MEDIUM = decoder(
    embed=512,
    ffw=1408,
    num_layers=8,
    heads=8,
    kv_heads=4,
    head_dim=64,
    vocab_size=32_000,
    tied=False,
)

# MEDIUM with 16 experts of width 704 in place of each feed-forward, of which each token uses 2.
EXPERTS = with_experts(
    MEDIUM,
    MixtureOfExperts(routing=Routing(num_experts=16, top_k=2), embed=MEDIUM.embed, ffw=704),
)


@dataclass(frozen=True)
class Case:
    """A step to compile."""

    model: DecoderConfig
    shape: StepShape
    devices: int = 1
    # A cache that dwarfs everything else: a copy of it cannot hide.
    num_pages: int = 20_000


@dataclass(frozen=True)
class Program:
    """A compiled step, and the arrays it keeps on the device, described."""

    compiled: jax.stages.Compiled
    cache: tuple[jax.ShapeDtypeStruct, ...]
    state: State[jax.ShapeDtypeStruct]

    @property
    def temporary_bytes(self) -> int:
        """Temporaries in bytes, per device."""
        return int(self._memory.temp_size_in_bytes)

    @property
    def aliased_bytes(self) -> int:
        """Bytes of results that alias arguments, per device."""
        return int(self._memory.alias_size_in_bytes)

    @property
    def text(self) -> str:
        """Its instructions, as XLA will run them."""
        text = self.compiled.as_text()
        assert text is not None
        return text

    @property
    def _memory(self) -> Any:
        memory = self.compiled.memory_analysis()
        assert memory is not None
        return memory


def plan(model: DecoderConfig, *, devices: int = 1) -> AttentionPlan:
    """Plan float32 attention over pages of 16 tokens on CPUs."""
    return plan_attention(
        model, dtype="float32", cache_dtype="float32", page_size=16, target=CPU, devices=devices
    )


@cache
def compile_case(case: Case) -> Program:
    """Compile a step; nothing is allocated."""
    model = case.model
    sharding = ShardingPlan(make_mesh(case.devices))
    attention = plan(model, devices=case.devices)
    layout = plan_layout(
        model.caches,
        CacheSizes(
            page_size=16,
            max_model_len=model.max_position,
            tokens_in_flight=2 * case.shape.tokens,
            checkpoint_interval=1,
        ),
    )
    num_pages = layout.num_pages(case.num_pages, num_states=case.num_pages)
    shape = replace(case.shape, pages=layout.num_columns)
    context = StepContext(
        model=model,
        head=sample_head,
        sharding=sharding,
        caches=layout,
        rope_length=model.max_position,
        attention=attention,
    )
    program = ProgramSet(context, num_pages=num_pages, num_slots=case.shape.sequences + 1)
    compiled = program.compile(abstract_params(model, WeightLayout(sharding=sharding)), shape)
    return Program(compiled, program.cache, program.state)
