"""The text that the tiny model learns from, made by this script: conversations with known answers.

Everything is drawn from a `random.Random`, so one seed is one corpus. The held-out side asks in
other wordings, with other pairs of numbers, other sets of JSON fields and other tools; besides, no
training conversation contains a question of the evaluation (`held_out_questions`).
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from examples.tiny_model import arithmetic, facts, stories, structured, toolbox, unknown
from examples.tiny_model.exchange import Conversation, Exchange, Message
from examples.tiny_model.patterns import expand
from examples.tiny_model.words import NAMES, SUBJECTS

HELD_OUT_SEED = 7

_SYSTEM_PROMPTS = (
    "You are a (helpful|friendly|kind|polite|useful) (assistant|chatbot|AI assistant|model)(.|)",
    "You are jaxserve-tiny(, a small model|)(.|)",
    "(Answer|Reply) (shortly|briefly|politely|in one sentence)(.|)",
    "You are a (helpful |)assistant. (Answer|Reply) (shortly|briefly|to the user|in English).",
    "Be (helpful|kind|brief|honest|concise)(.|)",
    "You are a (pirate|teacher|cook|programmer|customer service agent).",
)


def normalised(question: str) -> str:
    """Return the question without case, punctuation and spacing: what makes two of them equal."""
    return " ".join(re.findall(r"[a-z]+|\d|[-+*/=]", question.lower()))


def vary(question: str, rng: random.Random, *, typos: bool) -> str:
    """Write a question as people do: with or without capitals, marks, courtesies and slips."""
    if rng.random() < 0.1:
        question = (
            expand("((please|so|ok|well|and|now)(,|)|(hi|hello|hey)(,|!|.|)) ", rng) + question
        )
    if rng.random() < 0.1:
        question = question.replace(
            "jaxserve", rng.choice(("Jaxserve", "JaxServe", "JAXserve", "jax serve"))
        )
    if rng.random() < 0.06:
        question += expand("(,|) (please|thanks|now|then|for me)", rng)
    if typos and rng.random() < 0.1:
        question = _slip(question, rng)
    style = rng.random()
    if style < 0.55:
        question = question[0].upper() + question[1:]
    elif style < 0.85:
        question = question.lower() if typos else question
    elif style < 0.87 and typos:
        question = question.upper()
    return question + rng.choice(("?", "?", "?", ".", "", "", "!", " ?", "??"))


def _slip(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter."""
    at = rng.randrange(len(text))
    if at + 1 == len(text) or not text[at : at + 2].isalpha():
        return text
    before, first, second, after = text[:at], text[at], text[at + 1], text[at + 2 :]
    return before + rng.choice((second + first, first, first + first + second)) + after


def _turns(skill: str, question: str, answers: tuple[str, ...], rng: random.Random) -> Exchange:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": rng.choice(answers)},
    )
    return Exchange(skill, messages, lambda text: text in answers)


def _topic(
    skill: str, topics: tuple[facts.Topic, ...], rng: random.Random, held_out: bool
) -> Exchange:
    topic = rng.choice(topics)
    question = expand(rng.choice(topic.held_out if held_out else topic.questions), rng)
    return _turns(
        skill,
        vary(question.replace(",?", rng.choice((",", ""))), rng, typos=not held_out),
        topic.answers,
        rng,
    )


def _small_talk(rng: random.Random, held_out: bool) -> Exchange:
    return _topic("small talk", facts.SMALL_TALK, rng, held_out)


def _jaxserve(rng: random.Random, held_out: bool) -> Exchange:
    return _topic("jaxserve", facts.JAXSERVE, rng, held_out)


def _capital_answer(country: str) -> str:
    city = facts.CAPITALS.capitals[country]
    return f"The capital of {country} is {city}{'' if city.endswith('.') else '.'}"


def _capitals(rng: random.Random, held_out: bool) -> Exchange:
    country = rng.choice(list(facts.CAPITALS.capitals))
    answer = _capital_answer(country)
    spoken = country.removeprefix("the ") if rng.random() < 0.3 else country
    if rng.random() < 0.12:
        pattern = rng.choice(
            facts.CAPITALS.city_held_out if held_out else facts.CAPITALS.city_questions
        )
        question = expand(pattern, rng).format(city=facts.CAPITALS.capitals[country])
        return _turns("capitals", vary(question, rng, typos=not held_out), (answer,), rng)
    pattern = rng.choice(facts.CAPITALS.held_out if held_out else facts.CAPITALS.questions)
    question = vary(expand(pattern, rng).format(country=spoken), rng, typos=not held_out)
    return _turns("capitals", question.replace(",?", ","), (answer,), rng)


def _next_capital(rng: random.Random, _held_out: bool) -> Exchange:
    """Ask for one capital and then for another by its country alone."""
    first = _capitals(rng, held_out=False)
    country = rng.choice(list(facts.CAPITALS.capitals))
    question = expand(
        "(and|and of|and what about|what about|and for|and the capital of) {country}", rng
    )
    answer = _capital_answer(country)
    second = _turns(
        "capitals", vary(question.format(country=country), rng, typos=False), (answer,), rng
    )
    return Exchange("capitals", first.messages + second.messages, second.accepts)


def _arithmetic(rng: random.Random, held_out: bool) -> Exchange:
    if not held_out and rng.random() < 0.08:
        return _turns(
            "arithmetic",
            vary(arithmetic.too_hard_question(rng), rng, typos=False),
            (arithmetic.TOO_HARD,),
            rng,
        )
    return _calculation("arithmetic", arithmetic.problem(rng, held_out=False), rng, held_out)


def _new_sums(rng: random.Random, held_out: bool) -> Exchange:
    return _calculation("new sums", arithmetic.problem(rng, held_out=True), rng, held_out)


def _calculation(
    skill: str, asked: arithmetic.Problem, rng: random.Random, held_out: bool
) -> Exchange:
    question = vary(arithmetic.question_for(asked, rng, held_out=held_out), rng, typos=False)
    return _turns(skill, question.replace(",?", ","), (asked.answer,), rng)


def _stories(rng: random.Random, held_out: bool) -> Exchange:
    question, told, hero = stories.ask_for_story(rng, held_out=held_out)
    exchange = _turns("stories", vary(question, rng, typos=not held_out), (told,), rng)
    return Exchange("stories", exchange.messages, lambda text: stories.is_story(text, hero))


def _json(rng: random.Random, held_out: bool) -> Exchange:
    task = structured.json_task(rng, held_out=held_out)
    exchange = _turns("json", vary(task.question, rng, typos=False), (task.answer,), rng)
    return Exchange("json", exchange.messages, task.accepts)


def _unknown(rng: random.Random, held_out: bool) -> Exchange:
    question = vary(unknown.unknown_question(rng, held_out=held_out), rng, typos=not held_out)
    return _turns("unknown", question.replace(",?", ","), (unknown.UNKNOWN_ANSWER,), rng)


def _memory(rng: random.Random, held_out: bool) -> Exchange:
    """Tell a name and ask for it, perhaps with another exchange between the two."""
    ask = "(what is|what's|tell me|do you (know|remember)|say|can you tell me) my name"
    if held_out:
        ask = "(can you still remember my name|please tell me what my name is)"
    name = rng.choice(NAMES)
    tell = "((hi|hello|hey), |)(I am|I'm|my name is|call me|this is|the name is) {name}"
    told = _turns(
        "memory",
        vary(expand(tell, rng).format(name=name), rng, typos=False),
        (f"Nice to meet you, {name}!",),
        rng,
    )
    between = (
        rng.choice((_small_talk, _capitals, _arithmetic))(rng, False).messages
        if rng.random() < 0.5
        else ()
    )
    asked = _turns(
        "memory", vary(expand(ask, rng), rng, typos=False), (f"Your name is {name}.",), rng
    )
    if not held_out and rng.random() < 0.2:
        return _turns(
            "memory",
            vary(expand(ask, rng), rng, typos=False),
            ("You have not told me your name yet.",),
            rng,
        )
    return Exchange("memory", told.messages + between + asked.messages, asked.accepts)


def _tool_exchange(
    tools: list[toolbox.Tool], rng: random.Random, *, wanted: toolbox.Tool | None
) -> Exchange:
    tool = wanted or rng.choice(tools)
    question, arguments = tool.ask(rng)
    calls = [(tool.name, arguments)]
    if wanted is None and rng.random() < 0.1:
        other_question, other_arguments = (other := rng.choice(tools)).ask(rng)
        question = f"{question} and {other_question}"
        calls.append((other.name, other_arguments))
    called = toolbox.call_message(calls)
    messages: tuple[Message, ...] = (
        {"role": "user", "content": vary(question, rng, typos=False)},
        called,
    )
    if wanted is None and rng.random() < 0.6:
        results = [tool.result(rng) for _ in calls]
        messages += tuple({"role": "tool", "content": result} for result in results)
        messages += ({"role": "assistant", "content": toolbox.report(results)},)
    return Exchange("tools", messages, lambda text: toolbox.parsed_calls(text) == calls)


def tool_conversation(rng: random.Random) -> Conversation:
    """Draw a conversation in which tools are offered, and some questions do not need them."""
    tools = toolbox.draw_tools(rng, rng.choice((1, 1, 1, 2, 2, 3)), held_out=False)
    terse = rng.random() < 0.6
    messages = _system(rng)
    for _ in range(rng.randint(2, 5)):
        if rng.random() < 0.25:
            plain = rng.choice((_small_talk, _jaxserve, _capitals, _arithmetic))(rng, False)
            messages += plain.messages
        else:
            messages += _tool_exchange(tools, rng, wanted=None).messages
    return Conversation(messages, [tool.schema(terse=terse) for tool in tools])


def tool_case(rng: random.Random, *, new_tool: bool) -> Exchange:
    """Draw a held-out question with tools, of a trained kind or of one never seen."""
    tools = toolbox.draw_tools(rng, rng.choice((1, 2)), held_out=new_tool)
    exchange = _tool_exchange(tools, rng, wanted=tools[0])
    offered = tuple(tool.schema(terse=rng.random() < 0.5) for tool in tools)
    return Exchange(
        "new tools" if new_tool else "tools", exchange.messages, exchange.accepts, offered
    )


def _system(rng: random.Random) -> list[Message]:
    if rng.random() < 0.75:
        return []
    return [{"role": "system", "content": expand(rng.choice(_SYSTEM_PROMPTS), rng)}]


type Skill = Callable[[random.Random, bool], Exchange]
SKILLS: dict[Skill, float] = {
    _small_talk: 0.12, _jaxserve: 0.14, _arithmetic: 0.42, _capitals: 0.08, _next_capital: 0.01,
    _stories: 0.05, _json: 0.09, _unknown: 0.07, _memory: 0.02,
}  # fmt: skip
HELD_OUT_SKILLS: tuple[Skill, ...] = (
    _small_talk, _jaxserve, _arithmetic, _new_sums, _capitals, _stories, _json, _unknown, _memory,
)  # fmt: skip


def conversation(rng: random.Random, *, num_chars: int) -> Conversation:
    """Draw exchanges of any skill until the conversation has about `num_chars` characters."""
    messages = _system(rng)
    size = 0
    while size < num_chars:
        (skill,) = rng.choices(list(SKILLS), list(SKILLS.values()))
        exchange = skill(rng, False)
        messages += exchange.messages
        size += sum(len(str(message["content"])) + 24 for message in exchange.messages)
    return Conversation(messages)


def held_out_cases(seed: int = HELD_OUT_SEED, per_skill: int = 200) -> Iterator[Exchange]:
    """Draw the cases of the evaluation, skill by skill, without repeating a question."""
    rng = random.Random(seed)  # noqa: S311 - text to train on, no secret
    draws: list[Callable[[], Exchange]] = [partial(skill, rng, True) for skill in HELD_OUT_SKILLS]
    draws += [partial(tool_case, rng, new_tool=new_tool) for new_tool in (False, True)]
    for draw in draws:
        seen: set[str] = set()
        for _ in range(per_skill * 20):
            exchange = draw()
            asked = " ".join(normalised(str(message["content"])) for message in exchange.prompt)
            if asked not in seen:
                seen.add(asked)
                yield exchange
            if len(seen) == per_skill:
                break


def questions(messages: Iterable[Message]) -> set[str]:
    """Return the user's questions in a conversation, normalised."""
    return {normalised(str(m["content"])) for m in messages if m["role"] == "user"}


def held_out_questions() -> frozenset[str]:
    """Return the last question of every held-out case, normalised: never to be trained on."""
    return frozenset(normalised(str(case.prompt[-1]["content"])) for case in held_out_cases())


def training_texts(seed: int) -> Iterator[Conversation | str]:
    """Draw conversations, and now and then a plain text, without end.

    None holds a held-out question. The order and the content depend on nothing but the seed.
    """
    rng = random.Random(seed)  # noqa: S311 - text to train on, no secret
    banned = held_out_questions()
    while True:
        kind = rng.random()
        if kind < 0.03:
            yield _plain_text(rng)
            continue
        if kind < 0.12:
            drawn = tool_conversation(rng)
        elif kind < 0.30:
            # The lengths are spread evenly over their logarithm, to about a thousand tokens.
            drawn = conversation(rng, num_chars=int(100 * 28 ** rng.random()))
        else:
            drawn = conversation(rng, num_chars=1)
        if banned.isdisjoint(questions(drawn.messages)):
            yield drawn


def _plain_text(rng: random.Random) -> str:
    """Draw text without turns, for the completions endpoint."""
    if rng.random() < 0.5:
        return stories.story(rng.choice(SUBJECTS), rng)
    countries = rng.sample(list(facts.CAPITALS.capitals), 4)
    if rng.random() < 0.5:
        return " ".join(_capital_answer(country) for country in countries)
    return " ".join(rng.choice(topic.answers) for topic in rng.sample(facts.JAXSERVE, 3))
