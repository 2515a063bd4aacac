"""What ``--state`` names: the folder of a server's ledger and tokens, and not the folder that is served.

Taken for one another, a list of tokens would lie among the files that everybody may fetch, and no server would read it.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..common.names import RESERVED, show_name
from ..identity.certificates import CERTIFICATE_NAME, KEY_NAME
from ..identity.principals import FILE_NAME
from ..identity.server_auth import OWNER_TOKEN_NAME

_OF_A_STATE = {"ledger", "lock", FILE_NAME, f"{FILE_NAME}.lock", CERTIFICATE_NAME, KEY_NAME, OWNER_TOKEN_NAME}
"""What lies in a state; a folder that holds none of it, and something else, is none."""


def to_other_state(_ctx: click.Context, _parameter: click.Parameter, state: Path | None) -> Path | None:
    """A state for a server that has it elsewhere than in its folder, as a click callback; see ``refuse_served``."""
    if state is not None:
        refuse_served(state)
    return state


def refuse_served(state: Path) -> None:
    """Refuse a folder that has a state of its own in it, because it is a served one.

    Raises:
        click.BadParameter: it is, and the text names the state.
    """
    inside = state / RESERVED
    if not inside.is_dir():
        return
    if (inside / "ledger").exists() or (inside / FILE_NAME).exists():
        does = f"its state is '{inside}'"
    else:
        does = "its state is the one that `blockproto serve --state` names"
    raise click.BadParameter(
        show_name(f"'{state}' is a folder that is served, not a state: {does}"), param_hint="--state"
    )


def require_state(state: Path, *, may_be_new: bool) -> None:
    """Refuse a folder that is no state, and whatever else cannot be one.

    Args:
        state: what was named.
        may_be_new: whether it may be missing or empty, to become one.

    Raises:
        click.BadParameter: it is served, or holds files of something else, or has to be there and is not.
    """
    refuse_served(state)
    try:
        there = set(os.listdir(state))
    except FileNotFoundError:
        if may_be_new:
            return
        raise _not_a_state(state, "does not exist") from None
    except OSError as error:
        raise click.BadParameter(show_name(f"'{state}': {error.strerror}"), param_hint="--state") from error
    if there and not there & _OF_A_STATE:
        raise _not_a_state(state, "holds other files and no state of a server")


def _not_a_state(state: Path, why: str) -> click.BadParameter:
    advice = f"name DIR/{RESERVED}, where DIR is the folder that is served, or what `blockproto serve --state` names"
    return click.BadParameter(show_name(f"'{state}' {why}: {advice}"), param_hint="--state")
