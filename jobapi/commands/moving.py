"""The steps of ``jobapi workspaces move``, each in transactions of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex, token_urlsafe

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DBAPIError

from ..config import ConfigError
from ..services import moves
from ..services.moves import CannotMove
from ..state import State
from ..store.connections import AnyRow
from ..store.engine import long_snapshot, long_transaction
from ..store.faults import is_locked
from ..store.moving import GUARDS
from ..store.readiness import schema_problem
from ..store.tables import ARRIVING, LEAVING, jobs
from .base import create_app, note

LOCK_SECONDS = 10
"""How long a step waits for a lock that affects only this workspace."""

PAGES_PER_NOTE = 100
"""After how many pages of jobs the progress is shown."""


@contextmanager
def target_state(url: str, variable: str) -> Iterator[State]:
    """The state of an application on the target database. Raises ``CannotMove``.

    ``variable`` is the environment variable that has the URL.
    """
    # It serves no requests, so its tokens are never used.
    settings = {"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": token_urlsafe(48)}
    try:
        app = create_app(settings)
    except ConfigError as error:
        raise CannotMove(str(error).replace("JOBAPI_DATABASE_URL", variable)) from None
    target: State = app.extensions["jobapi"]
    try:
        with target.engine.connect() as connection:
            problem = schema_problem(connection)
        if problem is not None:
            raise CannotMove(f"The target is not ready. {problem}")
        yield target
    finally:
        target.close()


@dataclass(frozen=True)
class Patience:
    """How often to try to lock a table, and how many seconds to wait in between.

    On Postgres all writers of a table queue up behind a transaction that waits for a lock on it, so
    each try takes a second at most.
    """

    tries: int = 60
    pause: float = 1.0


@contextmanager
def open_move(
    source: Engine, target: Engine, workspace_id: int, patience: Patience | None = None
) -> Iterator[Move]:
    """A run of the command, with its connections."""
    with source.connect() as here, target.connect() as there:
        yield Move(here, there, workspace_id, patience or Patience())


@dataclass(frozen=True)
class Move:
    """A move of a workspace; see ``services.moves``. All methods raise ``CannotMove``."""

    source: Connection
    target: Connection
    workspace_id: int
    patience: Patience
    name: str = field(default_factory=lambda: f"moving {token_hex(8)}")

    def run(self) -> None:
        """Move the workspace, or continue a move."""
        if moves.find(self.source, self.workspace_id) is None:
            # The maintenance has deleted the original.
            there = moves.find(self.target, self.workspace_id)
            if there is None or there.move is not None or there.deleted_at is not None:
                raise moves.missing(self.workspace_id)
            self._note_moved()
            return
        workspace = self._find()
        is_there = moves.has_copy(self.target, workspace)
        if workspace.move == LEAVING and is_there:
            self.leave()
            return
        if workspace.move is None and workspace.deleted_at is not None:
            if not is_there:
                raise moves.missing(self.workspace_id)
            self._note_moved()
            return
        continues = workspace.move == LEAVING
        moves.check_target(self.target, workspace)
        self.freeze(continues=continues)
        try:
            self.prepare()
        except CannotMove:
            if not continues:
                self.thaw()
            raise
        note(f"Workspace {self.workspace_id} is now read-only.")
        self.copy()
        self.show()
        self.leave()

    def undo(self) -> None:
        """End an unfinished move: the workspace stays in the source."""
        workspace = self._find()
        if not moves.has_copy(self.target, workspace):
            # With one of the guards gone, no other process can make a copy visible.
            self._patiently(partial(moves.unguard, workspace_id=self.workspace_id, of=GUARDS[0]))
        with self._writing(self.target) as tx:
            moves.give_up(tx, workspace)
        self.thaw()
        note(f"Workspace {self.workspace_id} stays here.")

    def freeze(self, *, continues: bool = False) -> None:
        """Prevent all changes in the workspace."""
        with self._writing(self.source) as tx:
            moves.mark(tx, self.workspace_id)
        try:
            for each in GUARDS:
                self._patiently(partial(moves.guard, workspace_id=self.workspace_id, of=each))
        except CannotMove:
            if not continues:
                self.thaw()
            raise
        try:
            moves.check_idle(self.source, self.workspace_id)
        except CannotMove:
            self.thaw()
            raise

    def thaw(self) -> None:
        """Allow changes in the workspace again; if it is hidden, it is deleted then."""
        for each in GUARDS:
            self._patiently(partial(moves.unguard, workspace_id=self.workspace_id, of=each))
        self._patiently(partial(moves.release, workspace_id=self.workspace_id))

    def prepare(self) -> None:
        """Create the hidden workspace in the target, or take over the one of an earlier run."""
        with self._writing(self.target) as target, long_snapshot(self.source) as source:
            workspace = moves.check_frozen(source, self.workspace_id)
            moves.prepare(source, target, workspace, self.name)

    def copy(self) -> None:
        """Copy all rows into the hidden workspace."""
        self._fold()
        for table in moves.COPIED:
            after: moves.After | None = ()
            if table is jobs:
                after = moves.copied(self.source, self.target, self.workspace_id)
            elif table in moves.REPEATED:
                self._forget(table)
            pages = 0
            while after is not None:
                with self.step() as (source, target, _):
                    after = moves.copy(source, target, self.workspace_id, table, after)
                pages += 1
                if table is jobs and pages % PAGES_PER_NOTE == 0:
                    note(f"Copied {pages * moves.AT_ONCE:,} jobs.")

    def show(self) -> None:
        """Compare the copy with the original, and make it visible."""
        note("Comparing the copy with the original.")
        with self.step() as (source, target, workspace):
            moves.show(source, target, workspace)
        note("The copy is equal. It is visible in the target now.")

    def leave(self) -> None:
        """Delete the original; the target has a visible copy."""
        with self._writing(self.source) as tx:
            moves.hide(tx, self.workspace_id)
        self.thaw()
        note(f"Workspace {self.workspace_id} has moved to the target. It is being deleted here.")

    @contextmanager
    def step(self) -> Iterator[tuple[Connection, Connection, AnyRow]]:
        """The source at this moment, a transaction that holds the copy, and the workspace."""
        with self._writing(self.target) as target:
            moves.hold(target, self.workspace_id, self.name)
            with long_snapshot(self.source) as source:
                yield source, target, moves.check_frozen(source, self.workspace_id)

    def _note_moved(self) -> None:
        note(f"Workspace {self.workspace_id} is in the target already.")

    def _find(self) -> AnyRow:
        workspace = moves.find(self.source, self.workspace_id)
        if workspace is None or workspace.move == ARRIVING:
            raise moves.missing(self.workspace_id)
        return workspace

    def _fold(self) -> None:
        more = True
        while more:
            with self._writing(self.source) as tx:
                more = moves.fold(tx, self.workspace_id)

    def _forget(self, table: Table) -> None:
        more = True
        while more:
            with self.step() as (_, target, _):
                more = moves.forget(target, self.workspace_id, table)

    def _writing(self, connection: Connection) -> AbstractContextManager[Connection]:
        return long_transaction(connection, lock_seconds=LOCK_SECONDS)

    def _patiently(self, step: Callable[[Connection], None]) -> None:
        """Do a step in the source that locks a table."""
        for each in range(self.patience.tries):
            if each:
                time.sleep(self.patience.pause)
            try:
                with long_transaction(self.source, lock_seconds=1) as tx:
                    step(tx)
                return
            except DBAPIError as error:
                if not is_locked(error):
                    raise
        raise CannotMove(
            "A long transaction in the database is in the way: it keeps a table locked. Wait for "
            "its end, or end it, and start the same command again."
        )
