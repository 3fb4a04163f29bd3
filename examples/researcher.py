"""A model without the engine: call it, differentiate it, look inside it, change it.

    python examples/researcher.py MODEL "some text"      # a folder or a hub name
    python examples/researcher.py                        # random weights, no download

docs/models.md explains what is used here.
"""

import sys

import jax
import jax.numpy as jnp
from jax import Array

from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_model
from jaxserve.models import Decoder, Tap, capture, config_from_hf, init_model
from jaxserve.tokenization.tokenizer import Tokenizer

SMALL = {
    "model_type": "qwen3",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def loss(model: Decoder, token_ids: Array, *, tap: Tap | None = None) -> Array:
    """Mean negative log-likelihood of each token of int[tokens] after those before it."""
    logprobs = jax.nn.log_softmax(model(token_ids[:-1], tap=tap))
    return -jnp.take_along_axis(logprobs, token_ids[1:, None], axis=-1).mean()


@jax.jit
def gradient_norms(model: Decoder, batch: Array) -> Array:
    """Gradient norm of every sequence of int[sequences, tokens] by itself: vmap of grad."""

    def norm(token_ids: Array) -> Array:
        slopes = jax.tree.leaves(jax.grad(loss)(model, token_ids))
        return jnp.sqrt(sum(jnp.sum(slope.astype(jnp.float32) ** 2) for slope in slopes))

    return jax.vmap(norm)(batch)


@jax.jit
def logit_lens(model: Decoder, token_ids: Array) -> Array:
    """Return the most likely next tokens after each layer, by the head: int[layers, tokens].

    nostalgebraist, "Interpreting GPT: the logit lens", 2020.
    """
    _, seen = capture(model, token_ids, "layers.*.out")
    streams = [seen[f"layers.{i}.out"] for i in range(model.config.num_layers)]
    return jnp.stack([model.logits(model.final_norm(x)).argmax(axis=-1) for x in streams])


@jax.jit
def head_importance(model: Decoder, token_ids: Array) -> Array:
    """How much the loss rises as each head is silenced: float32[layers, heads].

    One program runs all the ablations: the head to silence is an argument, mapped over.
    """
    num_heads = model.layers[0].attention.o[...].shape[0]

    def ablated(layer: Array, head: Array) -> Array:
        def silence(name: str, value: Array) -> Array:
            if not name.endswith(".attention.heads"):
                return value
            number = int(name.split(".")[1])  # layers.N.attention.heads
            is_silent = (layer == number) & (jnp.arange(num_heads) == head)
            return jnp.where(is_silent[:, None], 0, value)

        return loss(model, token_ids, tap=silence)

    layers, heads = jnp.arange(model.config.num_layers), jnp.arange(num_heads)
    per_head = jax.vmap(jax.vmap(ablated, in_axes=(None, 0)), in_axes=(0, None))
    return per_head(layers, heads) - loss(model, token_ids)


def main(arguments: list[str]) -> None:
    """Print what the functions above find for a text, or for random tokens."""
    if arguments:
        folder = Checkpoint.open(arguments[0]).folder
        model = load_model(folder)
        text = " ".join(arguments[1:]) or "Once upon a time"
        token_ids = jnp.array(Tokenizer.load(folder).encode(text))
    else:
        model = init_model(config_from_hf(SMALL), seed=0)
        token_ids = jax.random.randint(jax.random.key(0), (24,), 0, model.config.vocab_size)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(model)):,} parameters")
    print(f"loss {jax.jit(loss)(model, token_ids):.3f}")
    print(f"gradient norms {gradient_norms(model, jnp.stack([token_ids, token_ids[::-1]]))}")
    print("likeliest next token after each layer, at the last position:")
    print(f"  {logit_lens(model, token_ids)[:, -1].tolist()}")
    rise = head_importance(model, token_ids)
    layer, head = jnp.unravel_index(rise.argmax(), rise.shape)
    print(f"silencing head {head} of layer {layer} costs most: {rise.max():+.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
