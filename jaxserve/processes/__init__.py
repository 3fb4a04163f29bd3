"""Processes of `jaxserve serve`: supervisor, engine and API processes.

    supervisor ──┬── control line ── engine ═══ ZeroMQ ═══╗
                 ├── control line ── api 0 ═══════════════╣
                 └── control line ── api 1 ═══════════════╝

Requests and tokens pass directly between API processes and the engine. The supervisor starts,
monitors and stops its children, and reports the engine's state to the API processes. The children
exit when the supervisor does.
"""
