"""Campaigns: what was promised, held against real processes, real sockets, SIGKILL and full disks.

Each module is one campaign, run on its own as ``python -m tests.campaigns.NAME`` (``--help`` says how), and each is called
by ``tests/test_end_to_end.py`` for a short slice of itself.

Rules:
    1. A broken promise raises ``Broken``, which says which one; a campaign prints its figures as one JSON object and ends
       with 0, or with 1 and what was broken.
    2. Times are figures, never reasons to fail: another machine is slower. What must not wait for something else is
       proved by holding that something else for ever.
    3. Everything random comes from ``--seed``. Moments are chosen by what passes the proxy (so many bytes, a COMMIT),
       not by the clock; what the processes do at that moment is up to them.
"""
