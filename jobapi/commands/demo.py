"""The demo user of development, with a workspace and the first requests to try."""

from __future__ import annotations

from sqlalchemy import Connection

from ..errors import LoginFailed, UsernameTaken, UserNotFound
from ..services import accounts, workspaces

DEMO_USER = "demo"
DEMO_PASSWORD = "demo-password"  # public on purpose; refused in production


def create_demo(tx: Connection) -> int:
    """Create the demo user with a workspace, unless they exist. Returns the workspace's id."""
    try:
        user = accounts.find_user(tx, DEMO_USER)
    except UserNotFound:
        try:
            user = accounts.create_user(tx, DEMO_USER, password=DEMO_PASSWORD, is_admin=True)
        except UsernameTaken:
            # Another process has just created the user, with the workspace.
            user = accounts.find_user(tx, DEMO_USER)
    mine = workspaces.page(tx, user_id=user.id, page=1, limit=1).rows
    return int((mine[0] if mine else workspaces.create(tx, "Demo", owner_id=user.id)).id)


def demo_works(connection: Connection) -> bool:
    """Whether the demo user can log in with the demo password."""
    try:
        accounts.authenticate(connection, DEMO_USER, DEMO_PASSWORD, None)
    except LoginFailed:
        return False
    return True


def demo_lines(workspace_id: int) -> str:
    """Three lines of curl: log in, create a job, list jobs."""
    url = "http://localhost:8000"
    jobs = f"{url}/workspace/{workspace_id}/jobs"
    login = f'{{"username": "{DEMO_USER}", "password": "{DEMO_PASSWORD}"}}'
    job = f'{{"job_type": "data_processing", "workspace_id": {workspace_id}}}'
    json = "-H 'Content-Type: application/json'"
    token = '-H "Authorization: Bearer $TOKEN"'
    return "\n".join(
        [
            f"TOKEN=$(curl -s {url}/auth/login {json} -d '{login}' "
            '| sed \'s/.*"access_token":"\\([^"]*\\)".*/\\1/\')',
            f"curl -s {jobs} {token} {json} -d '{job}'",
            f"curl -s {jobs} {token}",
        ]
    )
