"""The first token closes a running server for everybody who has none; only its operator opens it again."""

from __future__ import annotations

from test_admission import Town, register_of  # noqa: F401
