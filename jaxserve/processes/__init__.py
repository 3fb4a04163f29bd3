"""Processes of `jaxserve serve`: supervisor, engine and API processes.

    supervisor ──┬── control line ── engine ═══ ZeroMQ ═══╗
                 ├── control line ── api 0 ═══════════════╣
                 └── control line ── api 1 ═══════════════╝

Requests and tokens go between API processes and the engine directly; the supervisor starts, watches
and ends them, and tells each what became of the others. When it is gone, so are they.
"""
