"""Where a worker's tasks run. A slot has one task at a time; there are as many as jobs may run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .leased_jobs import RELEASE, LeasedJobs, with_end
from .options import Options
from .tasks import Permanent, Report, Task, running
from .tracing import is_recording, span

MAX_ERROR = 65_536

SUCCESS: Report = {"status": "success"}

logger = logging.getLogger("jobapi.worker")


class Slots(ABC):
    """The part that all kinds of slots share: how a task begins and ends."""

    def __init__(self, options: Options, jobs: LeasedJobs, must_stop: Callable[[], bool]) -> None:
        self.options = options
        self.jobs = jobs
        self.must_stop = must_stop
        self.recording = is_recording()

    @abstractmethod
    def start(self) -> None:
        """Start to take tasks from the queue."""

    @abstractmethod
    def check(self) -> None:
        """Check the tasks; called several times a second."""

    @abstractmethod
    def close(self) -> None:
        """Release the jobs that have not begun, because the worker stops."""

    @abstractmethod
    def end(self) -> None:
        """Take no more tasks, and cancel those that can be cancelled."""

    def _begin(self, task: Task, number: int) -> bool:
        """Put a task into a slot; False if its job is released instead."""
        now = time.monotonic()
        if self.must_stop() or task.cancelled or self._is_stale(task, now):
            self.jobs.end(task, [RELEASE])
            return False
        task.started_at = now
        self.jobs.running[number] = task
        return True

    def _is_stale(self, task: Task, now: float) -> bool:
        """Whether both clocks say that this process was paused and may have lost the lease."""
        longest = self.options.lease_seconds / 2
        return now - task.claimed_at > longest and time.time() - task.claimed_at_wall > longest

    def _end(self, task: Task, number: int, reports: Sequence[Report]) -> None:
        """Free the slot of a task that has ended."""
        if task.started_at is not None:
            self.jobs.measure(time.monotonic() - task.started_at)
        self.jobs.end(task, reports)
        self.jobs.running[number] = None

    def _unrecorded(self, task: Task, error: BaseException) -> list[Report]:
        """The end of a task whose own end cannot be recorded.

        The error is not the task's, which would be in its reports.
        """
        logger.error("job %s: cannot record how it ended", task.job_id, exc_info=error)
        return [{"status": "failed", "error": error_text(error)}]


class ThreadSlots(Slots):
    """A thread for each slot."""

    def start(self) -> None:
        """Start the threads."""
        for number in range(self.options.concurrency):
            threading.Thread(target=self._run_tasks, args=(number,), daemon=True).start()

    def check(self) -> None:
        """Do nothing: the threads need no checks."""

    def close(self) -> None:
        """Do nothing: the runner releases queued jobs."""

    def end(self) -> None:
        """End the threads when they have nothing to run."""
        for _ in range(self.options.concurrency):
            self.jobs.queued.put(None)

    def _run_tasks(self, number: int) -> None:
        while (task := self.jobs.queued.get()) is not None:
            try:
                if self._begin(task, number):
                    run = self.options.tasks[task.job_type]
                    self._end(task, number, last_reports(task, run, recording=self.recording))
            except BaseException as error:
                self.jobs.end(task, self._unrecorded(task, error))
            finally:
                self.jobs.running[number] = None


class MixedSlots(Slots):
    """Slots for a worker with ``async def`` tasks or an engine.

    One thread takes the tasks from the queue. ``async def`` tasks run on one event loop in a
    thread of its own. Plain functions go to the engine, or run in a new thread each.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        """Start the event loop and the thread that takes tasks."""
        for number in range(self.options.concurrency):
            self._free.put(number)
        for run in (self._run_loop, self._hand_out):
            threading.Thread(target=run, daemon=True).start()

    def check(self) -> None:
        """Let the engine check the jobs that were handed over."""
        if self.options.engine is not None:
            self.options.engine.check()

    def close(self) -> None:
        """Let the engine release the jobs that have not begun."""
        if self.options.engine is not None:
            self.options.engine.close()

    def end(self) -> None:
        """Take no more tasks, cancel the ``async def`` tasks that still run, and end the loop."""
        self._free.put(None)
        self.jobs.queued.put(None)
        self._loop.call_soon_threadsafe(self._cancel_all)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for each in tasks:
            each.cancel()
        ended = asyncio.gather(*tasks, return_exceptions=True)
        ended.add_done_callback(lambda _: self._loop.stop())

    def _hand_out(self) -> None:
        try:
            while (number := self._free.get()) is not None:
                task = self.jobs.queued.get()
                if task is None:
                    return
                if self._begin(task, number):
                    self._start(task, number)
                else:
                    self._free.put(number)
        except BaseException as error:
            logger.exception("tasks can no longer be started")
            self.jobs.fail(error)

    def _start(self, task: Task, number: int) -> None:
        run, engine = self.options.tasks[task.job_type], self.options.engine

        def end(task: Task, reports: Sequence[Report]) -> None:
            if task.ended:
                return
            try:
                self._end(task, number, reports)
            except BaseException as error:
                self.jobs.end(task, self._unrecorded(task, error))
            finally:
                self.jobs.running[number] = None
                self._free.put(number)

        def run_in_thread() -> None:
            try:
                reports = last_reports(task, run, recording=self.recording)
            except BaseException as error:
                reports = self._unrecorded(task, error)
            end(task, reports)

        if is_async(run):
            self._loop.call_soon_threadsafe(self._spawn, task, end)
        elif engine is None:
            threading.Thread(target=run_in_thread, daemon=True).start()
        else:
            engine.start(task, end)

    def _spawn(self, task: Task, end: Callable[[Task, Sequence[Report]], None]) -> None:
        coroutine = self._loop.create_task(self._await(task))

        def ended(_: object) -> None:
            task.on_lost = None
            try:
                # Cancelled before it has begun to run.
                reports = [RELEASE] if coroutine.cancelled() else coroutine.result()
            except BaseException as error:
                reports = self._unrecorded(task, error)
            end(task, reports)

        coroutine.add_done_callback(ended)
        task.on_lost = lambda: self._loop.call_soon_threadsafe(coroutine.cancel)
        if task.cancelled:
            coroutine.cancel()

    async def _await(self, task: Task) -> list[Report]:
        try:
            with span(task.job, recording=self.recording), running(task):
                run: Any = self.options.tasks[task.job_type]
                return success(task, await run(task))
        except BaseException as error:
            return failure(task, error)


def is_async(run: Any) -> bool:
    """Whether a task is an ``async def`` function, or an object with an ``async def __call__``."""
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(type(run).__call__)


def last_reports(task: Task, run: Callable[[Task], Any], *, recording: bool) -> list[Report]:
    """Run a task, and return its reports that are not sent yet, with its end."""
    try:
        with span(task.job, recording=recording), running(task):
            return success(task, run(task))
    except BaseException as error:
        return failure(task, error)


def success(task: Task, result: Any) -> list[Report]:
    """The last reports of a task that has returned. Raises ``Permanent`` for a wrong result."""
    if result is not None and not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        return with_end(task.take_reports(result), SUCCESS)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error


def failure(task: Task, error: BaseException) -> list[Report]:
    """The last reports of a task that has raised an exception."""
    end: dict[str, Any] = {"status": "failed", "error": error_text(error)}
    if isinstance(error, Permanent):
        logger.warning("job %s failed permanently: %s", task.job_id, error)
        end["retryable"] = False
    elif not task.cancelled:
        logger.warning("job %s failed: %r", task.job_id, error)
    return with_end(task.take_reports(), end)


def error_text(error: BaseException) -> str:
    """The traceback of an error, as the ``error`` of a job."""
    try:
        text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    except Exception as failed:
        text = f"{type(error).__qualname__} (its traceback cannot be formatted: {failed})"
    # Keep the end of the traceback, its most useful part.
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
