"""The steps of ``jobapi workspaces move``, each in transactions of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_urlsafe
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from ..services import moves
from ..services.moves import CannotMove, Ids
from ..state import State
from ..store.engine import long_transaction
from ..store.transactions import snapshot
from .base import create_app, note


@contextmanager
def target_state(url: str) -> Iterator[State]:
    """The state of an application on the target database. Raises ``CannotMove``."""
    # It serves no request, so nobody needs its tokens.
    settings = {"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": token_urlsafe(48)}
    app = create_app(settings)
    target: State = app.extensions["jobapi"]
    try:
        with target.engine.connect() as connection:
            problem = target.schema_problem(connection)
        if problem is not None:
            raise CannotMove(f"The target is not ready. {problem}")
        yield target
    finally:
        target.close()


class _Move(NamedTuple):
    source: Engine
    target: Engine
    workspace_id: int

    @contextmanager
    def writing(self) -> Iterator[tuple[Connection, Connection]]:
        """The source as it is at this moment, and a transaction in the target."""
        with (
            self.source.connect() as source,
            self.target.connect() as target,
            snapshot(source),
            long_transaction(target) as tx,
        ):
            yield source, tx


def move(source: Engine, target: Engine, workspace_id: int, *, undo: bool = False) -> None:
    """Move a workspace, or continue a move; see ``services.moves``. Raises ``CannotMove``."""
    this = _Move(source, target, workspace_id)
    if undo:
        _undo(this)
        return
    with source.connect() as here, target.connect() as there:
        # A move may have been killed after its last step.
        if not moves.is_there(here, workspace_id) and moves.is_there(there, workspace_id):
            note(f"Workspace {workspace_id} is in the target already.")
            return
    with source.connect() as connection, long_transaction(connection) as tx:
        workspace = moves.freeze(tx, workspace_id)
    note(f"Workspace {workspace_id} can only be read now.")
    with target.connect() as connection:
        is_there = workspace.move is not None and moves.is_there(connection, workspace_id)
    if not is_there:
        try:
            with this.writing() as (reading, tx):
                ids = moves.prepare(reading, tx, workspace)
        except CannotMove:
            _thaw(this, moved=False)
            raise
        _copy(this, ids)
        _verify(this, ids)
        with target.connect() as connection, long_transaction(connection) as tx:
            moves.show(tx, workspace_id)
    _thaw(this, moved=True)
    note(f"Workspace {workspace_id} is in the target, and deleted here.")


def _thaw(this: _Move, *, moved: bool) -> None:
    with this.source.connect() as connection, long_transaction(connection) as tx:
        moves.thaw(tx, this.workspace_id, moved=moved)


def _undo(this: _Move) -> None:
    with this.target.connect() as connection:
        if moves.is_there(connection, this.workspace_id):
            raise CannotMove("The target has the whole workspace. Start the move again to end it.")
        with long_transaction(connection) as tx:
            moves.give_up(tx, this.workspace_id)
    _thaw(this, moved=False)
    note(f"Workspace {this.workspace_id} stays here.")


def _copy(this: _Move, ids: Ids) -> None:
    source, target, workspace_id = this
    with source.connect() as reading, target.connect() as connection:
        last: int | None = moves.copied_jobs(reading, connection, workspace_id)
    n = 0
    while last is not None:
        with this.writing() as (reading, tx):
            last = moves.copy_jobs(reading, tx, workspace_id, ids, last)
        n += 1
        if n % 100 == 0:
            note(f"Copied {n * moves.AT_ONCE:,} jobs.")
    more = True
    while more:
        with this.writing() as (_, tx):
            more = moves.forget_events(tx, workspace_id)
    position: tuple[int, int] | None = (-1, -1)
    while position is not None:
        with this.writing() as (reading, tx):
            position = moves.copy_events(reading, tx, workspace_id, ids, position)
    more = True
    while more:
        with source.connect() as connection, long_transaction(connection) as tx:
            more = moves.fold(tx)
    with this.writing() as (reading, tx):
        moves.copy_rest(reading, tx, workspace_id, ids)


def _verify(this: _Move, ids: Ids) -> None:
    with this.source.connect() as connection, snapshot(connection):
        there = moves.digests(connection, this.workspace_id, ids)
    with this.target.connect() as connection, snapshot(connection):
        here = moves.digests(connection, this.workspace_id, None)
    wrong = sorted(name for name in there if there[name] != here[name])
    if wrong:
        raise CannotMove(
            f"The copy differs in {', '.join(wrong)}. Start the move again with --undo, and then "
            "once more."
        )
    note("The copy is equal.")
