"""Table of the attacks of abuse.py."""

from benchmarks.abuse_bodies import (
    send_long_choices,
    send_long_regexes,
    send_many_choices,
    send_one_line_batch,
    send_wide_bodies,
)
from benchmarks.abuse_client import Attack
from benchmarks.abuse_connections import (
    drip_bodies,
    drip_headers,
    exhaust_connections,
    hold_big_bodies,
    rebind,
    smuggle,
)

ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="wide bodies",
        about="20 bodies of 15 MB at once: millions of prompts, messages, tokens, strings",
        run=send_wide_bodies,
    ),
    Attack(
        name="one-line batch",
        about="a batch file that is one line of 50 MB",
        run=send_one_line_batch,
    ),
    Attack(
        name="long regexes",
        about="26 expressions of a million repetitions",
        run=send_long_regexes,
    ),
    Attack(
        name="long choices",
        about="12 times one of 25,000 texts",
        run=send_long_choices,
    ),
    Attack(
        name="many choices",
        about="8 times 128 answers to one request",
        run=send_many_choices,
    ),
    Attack(
        name="connections",
        about="256 idle connections where 64 are allowed",
        run=exhaust_connections,
        flags=("--max-connections", "64"),
    ),
    Attack(
        name="slow headers",
        about="256 clients that send headers a line at a time",
        run=drip_headers,
    ),
    Attack(
        name="slow bodies",
        about="128 clients that send JSON and files a byte at a time",
        run=drip_bodies,
    ),
    Attack(
        name="big bodies held",
        about="60 bodies of 15.5 MB that lack their last byte",
        run=hold_big_bodies,
    ),
    Attack(
        name="smuggling",
        about="requests with two meanings, each with another request behind it",
        run=smuggle,
    ),
    Attack(
        name="strange hosts",
        about="DNS rebinding and pages of other origins",
        run=rebind,
    ),
    Attack(
        name="open files",
        about="256 idle connections to a process that may open 192 files",
        run=exhaust_connections,
        max_files=192,
    ),
)
