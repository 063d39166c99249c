"""What a process that handles ticks does until it is killed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from jobapi import create_app
from jobapi.background.periodic_tasks import run_schedules


def main(url: str, folder: str) -> None:
    """Handle due ticks again and again. The time is what the file ``now`` in the folder says."""
    app = create_app(
        {
            "JOBAPI_DATABASE_URL": url,
            "JOBAPI_SECRET_KEY": "only-for-tests-" + "x" * 32,
            "JOBAPI_INSTANCE_PATH": folder,
            "JOBAPI_MAINTENANCE_ENABLED": False,
        }
    )
    with app.extensions["jobapi"].engine.connect() as connection:
        while True:
            now = datetime.fromisoformat((Path(folder) / "now").read_text())
            run_schedules(
                connection,
                on_ticked=lambda ticked: None,
                announce=lambda connection, workspace_id: None,
                now=now,
            )
