"""The drill that kills processes of a real server, with the model that jaxserve brings."""

import asyncio

from benchmarks.kill_drill import drill


def test_a_real_server_survives_the_death_of_each_process_under_load() -> None:
    kinds = ["engine", "api", "main"]
    reports = asyncio.run(drill(kinds, num_rounds=1, num_streams=4, limit_s=120.0))
    assert [(report.kind, report.misses) for report in reports] == [(kind, []) for kind in kinds]
    engine, api, _ = reports
    assert (engine.num_error_events, engine.num_cut) == (4, 0)
    assert api.num_cut == 4
