"""The tiny model that ships with jaxserve: its corpus, its folder and its training script."""

import json
import math
import random
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from examples.tiny_model.architectures import ARCHITECTURES, DENSE, MIXTURE
from examples.tiny_model.arithmetic import Problem, problem
from examples.tiny_model.batched import batch_logits
from examples.tiny_model.corpus import (
    held_out_cases,
    held_out_questions,
    normalised,
    questions,
    tool_conversation,
    training_texts,
)
from examples.tiny_model.evaluate import scores
from examples.tiny_model.exchange import Conversation
from examples.tiny_model.export import hf_weights
from examples.tiny_model.patterns import expand
from examples.tiny_model.stories import is_story, story
from examples.tiny_model.tokenizer import TEMPLATE, render, train_tokenizer
from examples.tiny_model.train import (
    ROW_LENGTHS,
    Schedule,
    balance_loss,
    batches,
    matrices,
    token_weights,
    train,
)
from jaxserve.loading.weights import load_model
from jaxserve.models import config_from_hf, init_model, params_of, weight_specs

FOLDER = Path(__file__).resolve().parents[2] / "jaxserve/assets/jaxserve-tiny"
MAX_FOLDER_BYTES = 8_000_000

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TINY_CONFIG = {**DENSE, **SMALL}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(FOLDER)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def test_same_seed_draws_the_same_corpus() -> None:
    first = list(islice(training_texts(3), 300))

    assert first == list(islice(training_texts(3), 300))
    assert first != list(islice(training_texts(4), 300))


def test_no_training_text_holds_a_held_out_question() -> None:
    held_out = held_out_questions()

    for text in islice(training_texts(5), 5000):
        if isinstance(text, Conversation):
            assert held_out.isdisjoint(questions(text.messages))


def test_held_out_sums_are_of_pairs_never_trained() -> None:
    rng = random.Random(0)
    trained = {problem(rng, held_out=False) for _ in range(3000)}
    held_out = {problem(rng, held_out=True) for _ in range(300)}

    assert not trained & held_out


def test_every_held_out_case_accepts_its_own_answer() -> None:
    cases = list(held_out_cases(per_skill=20))
    own = [
        render(Conversation([case.messages[-1]]))
        .removeprefix("<|im_start|>assistant\n")
        .removesuffix("<|im_end|>\n")
        for case in cases
    ]

    assert set(scores(cases, own).values()) == {1.0}


def test_a_wrong_answer_scores_nothing() -> None:
    cases = list(held_out_cases(per_skill=20))

    assert set(scores(cases, ["I am not sure."] * len(cases)).values()) == {0.0}


def test_pattern_draws_each_of_its_lines() -> None:
    rng = random.Random(0)

    drawn = {expand("(a|(b|c)d|)!", rng) for _ in range(200)}

    assert drawn == {"a!", "bd!", "cd!", "!"}


@pytest.mark.parametrize("pattern", ["(a", "a)", "((a|b)"])
def test_pattern_with_unmatched_parenthesis_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        expand(pattern, random.Random(0))


def test_questions_are_compared_without_case_and_marks() -> None:
    assert normalised("What is 7+5 ??") == normalised("what is 7 + 5")
    assert normalised("7 + 5") != normalised("75")[::-1]


def test_story_must_be_whole_and_about_its_hero() -> None:
    told = story("fox", random.Random(0))

    assert is_story(told, "fox")
    assert not is_story(told, "wizard")
    assert not is_story(told[:-20], "fox")


def test_answer_of_a_problem_states_it() -> None:
    assert Problem(7, "+", 5).answer == "7 + 5 = 12."
    assert Problem(3, "-", 8).answer == "3 - 8 = -5."
    assert Problem(42, "/", 6).answer == "42 / 6 = 7."


def test_only_the_assistant_is_learnt_in_full(tokenizer: PreTrainedTokenizerFast) -> None:
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi there!"},
    ]
    ids = np.asarray(tokenizer.encode(render(Conversation(messages))), np.int32)

    learnt = tokenizer.decode(ids[token_weights(ids, tokenizer) == 1.0])

    assert learnt == "Hi there!<|im_end|>"


def test_same_texts_learn_the_same_tokenizer() -> None:
    texts = [render(text) for text in islice(training_texts(1), 200)]

    first, second = (train_tokenizer(iter(texts), vocab_size=400) for _ in range(2))

    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_short_training_reduces_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    schedule = Schedule(num_steps=20, tokens_per_step=512, warmup_steps=2, decay_steps=5)
    shortest = ROW_LENGTHS[0]  # one shape, so that one program is compiled
    stream = (batch for batch in batches(1, tokenizer, 512) if batch.token_ids.shape[1] == shortest)

    _, losses = train(config_from_hf(TINY_CONFIG), stream, schedule)

    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_matrices_of_layers_alone_are_orthogonalized() -> None:
    described = flatten_dict(matrices(config_from_hf(MIXTURE)))

    of_layer = {
        ".".join(path[2:]): (dims.reduction_axis, dims.output_axis)
        for path, dims in described.items()
        if dims is not None and path[:2] == ("layers", 0)
    }
    assert of_layer == {
        "attention.qkv": ((0,), (1, 2, 3)),
        "attention.o": ((0, 1), (2,)),
        "mlp.experts.gate": ((1,), (2,)),  # one matrix per expert
        "mlp.experts.up": ((1,), (2,)),
        "mlp.experts.down": ((1,), (2,)),
    }
    assert described[("embedding",)] is None


def test_experts_that_get_equal_shares_have_the_least_balance_loss() -> None:
    is_live = jnp.array([True, True, True, True, False])
    even = {"logits": jnp.zeros((5, 4)), "experts": jnp.array([[0, 1], [2, 3]] * 2 + [[0, 0]])}
    preferred = jnp.tile(jnp.array([3.0, 3.0, 0.0, 0.0]), (5, 1))
    uneven = {"logits": preferred, "experts": jnp.tile(jnp.array([0, 1]), (5, 1))}

    def of(layer: dict[str, jax.Array]) -> float:
        named = {f"layers.0.mlp.router.{name}": value for name, value in layer.items()}
        return float(balance_loss(named, is_live))

    assert of(even) == pytest.approx(2)  # top_k
    assert of(uneven) > 3


def test_rows_in_one_axis_get_the_logits_of_each_row() -> None:
    model = init_model(config_from_hf({**MIXTURE, **SMALL, "num_experts": 4}), seed=0)
    token_ids = jnp.arange(14).reshape(2, 7)

    logits = batch_logits(model, token_ids)

    for row, of_row in zip(token_ids, logits, strict=True):
        np.testing.assert_allclose(of_row, model(row), rtol=0, atol=1e-5)


def test_rates_fall_in_time_if_minutes_do_not_suffice() -> None:
    schedule = Schedule(num_steps=100, decay_steps=50, warmup_steps=1, minutes=10)

    assert schedule.left(10, seconds=60) == pytest.approx(0.9)
    assert schedule.left(10, seconds=450) == pytest.approx(0.25)
    assert schedule.rate(10, left=0.9) == 1
    assert schedule.rate(10, left=0.25) == pytest.approx(0.5)
    assert schedule.left(10, seconds=601) < 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_about_two_million_parameters(name: str) -> None:
    specs = weight_specs(config_from_hf(ARCHITECTURES[name]))

    assert 1.7e6 < sum(math.prod(spec.shape) for spec in specs.values()) < 2.1e6


def test_export_writes_every_tensor_as_out_by_in() -> None:
    config = config_from_hf(TINY_CONFIG)
    params = params_of(init_model(config, seed=0))

    weights = hf_weights(params, config)

    query = params["layers"][0]["attention"]["qkv"][:, :, :-2]  # [embed, kv_heads, group, head_dim]
    exported = weights["model.layers.0.self_attn.q_proj.weight"].astype(np.float32)
    expected = np.asarray(query.reshape(32, 32).T.astype("bfloat16")).astype(np.float32)
    np.testing.assert_array_equal(exported, expected)
    num_exported = sum(weight.size for weight in weights.values())
    assert num_exported == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_folder_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_FOLDER_BYTES


def test_folder_holds_the_template_that_training_used() -> None:
    assert (FOLDER / "chat_template.jinja").read_text() == TEMPLATE.read_text()


def test_folder_states_the_architecture_of_the_script() -> None:
    written = json.loads((FOLDER / "config.json").read_text())

    assert config_from_hf(written) == config_from_hf(DENSE)


@pytest.mark.parametrize(
    "text", ["Hello, 1234 + 5!", '{"name": "Zoë"}\n', "  日本 🙂\t<tool_call>"]
)
def test_tokenizer_gives_back_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_tokenizer_splits_numbers_into_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]


def test_user_text_with_text_parts_renders_like_a_string() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]

    def prompt(content: object) -> str:
        return render(Conversation([{"role": "user", "content": content}]))

    assert prompt(parts) == prompt("Hello") == "<|im_start|>user\nHello<|im_end|>\n"


def test_tool_results_that_follow_one_another_share_a_turn() -> None:
    messages: list[dict[str, object]] = [
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]

    assert render(Conversation(messages), add_generation_prompt=True) == (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>"
        "\n<tool_response>\ntwo\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_are_offered_in_the_system_turn() -> None:
    drawn = tool_conversation(random.Random(0))

    rendered = render(drawn)

    assert rendered.startswith("<|im_start|>system\n")
    for tool in drawn.tools:
        assert rendered.count(json.dumps(tool)) == 1


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("what's 7+5", "7 + 5 = 12."),
        ("What is jaxserve?", "jaxserve is an inference engine for open-weight language models,"),
    ],
)
def test_embedded_model_answers(
    tokenizer: PreTrainedTokenizerFast, question: str, answer: str
) -> None:
    model = load_model(FOLDER, dtype="float32")
    prompt = render(
        Conversation([{"role": "user", "content": question}]), add_generation_prompt=True
    )
    ids = tokenizer.encode(prompt)
    answer_ids = tokenizer.encode(answer)

    logits = model(jnp.asarray([ids + answer_ids]))

    greedy = np.argmax(logits[0, len(ids) - 1 : -1], axis=-1)
    assert tokenizer.decode(greedy) == answer
