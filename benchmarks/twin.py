"""What one would write instead: FastAPI and async SQLAlchemy, with login and roles.

``bench.py`` runs it with uvicorn in ``benchmarks/.venv``. It accepts the same access tokens, checks
the user's role in the workspace with one query, and has the table ``twin_jobs``: the fields of a
job, and the indexes of lists. It has neither counts nor events.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import JSON, DateTime, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SECRET = os.environ["JOBAPI_SECRET_KEY"]
url = os.environ["JOBAPI_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)
engine = create_async_engine(url, pool_size=int(os.environ["TWIN_CONNECTIONS"]), max_overflow=0)
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()

ROLE = text(
    "SELECT m.role FROM jobapi_users u JOIN jobapi_sessions s ON s.user_id = u.id"
    " JOIN jobapi_memberships m ON m.user_id = u.id"
    " WHERE u.id = :user_id AND s.id = :session_id AND NOT u.disabled"
    " AND m.workspace_id = :workspace_id"
)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSON}


class Job(Base):
    __tablename__ = "twin_jobs"

    workspace_id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(primary_key=True)
    job_type: Mapped[str]
    status: Mapped[int]
    priority: Mapped[int]
    created_by: Mapped[int]
    document: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    estimated_duration: Mapped[int | None]
    actual_duration: Mapped[int | None]
    timeout_seconds: Mapped[int | None]
    progress_percent: Mapped[int | None]
    progress_message: Mapped[str | None]
    retry_count: Mapped[int]
    max_retries: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    scheduled_at: Mapped[datetime | None]
    due_at: Mapped[datetime]
    concurrency_key: Mapped[str | None]
    unique_key: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    schedule_id: Mapped[str | None]
    scheduled_for: Mapped[datetime | None]


class JobOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    job_id: str
    workspace_id: int
    job_type: str
    status: int
    priority: int
    created_by: int
    document: dict[str, Any] | None = Field(serialization_alias="metadata")
    result: dict[str, Any] | None
    error: str | None
    estimated_duration: int | None
    actual_duration: int | None
    timeout_seconds: int | None
    retry_count: int
    max_retries: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    scheduled_at: datetime | None
    due_at: datetime
    concurrency_key: str | None
    unique_key: str | None
    expires_at: datetime | None
    schedule_id: str | None
    scheduled_for: datetime | None


class Page(BaseModel):
    data: list[JobOut]
    total: int


class JobIn(BaseModel):
    job_type: str = Field(max_length=100)
    workspace_id: int
    metadata: dict[str, Any] | None = None
    max_retries: int = 3


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


async def member(
    workspace_id: int, db: Session, authorization: Annotated[str, Header()] = ""
) -> int:
    try:
        claims = jwt.decode(authorization.removeprefix("Bearer "), SECRET, ["HS256"])
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None
    user_id = int(claims["sub"])
    given = {"user_id": user_id, "session_id": claims["sid"], "workspace_id": workspace_id}
    if (await db.execute(ROLE, given)).first() is None:
        raise HTTPException(403)
    return user_id


Member = Annotated[int, Depends(member)]


@app.get("/workspace/{workspace_id}/jobs/{job_id}", response_model=JobOut)
async def read(workspace_id: int, job_id: str, user_id: Member, db: Session) -> Any:
    job = await db.get(Job, (workspace_id, job_id))
    if job is None:
        raise HTTPException(404)
    return job


@app.get("/workspace/{workspace_id}/jobs", response_model=Page)
async def page(workspace_id: int, user_id: Member, db: Session, limit: int = 50) -> Any:
    mine = Job.workspace_id == workspace_id
    query = select(Job).where(mine).order_by(Job.created_at.desc(), Job.job_id.desc())
    jobs = (await db.scalars(query.limit(limit))).all()
    total = await db.scalar(select(func.count()).select_from(Job).where(mine))
    return {"data": jobs, "total": total}


@app.post("/workspace/{workspace_id}/jobs", response_model=JobOut, status_code=201)
async def create(workspace_id: int, body: JobIn, user_id: Member, db: Session) -> Any:
    now = datetime.now(UTC)
    job = Job(
        job_id=f"job_{uuid4().hex}",
        workspace_id=workspace_id,
        created_by=user_id,
        job_type=body.job_type,
        status=0,
        priority=1,
        document=body.metadata,
        retry_count=0,
        max_retries=body.max_retries,
        created_at=now,
        updated_at=now,
        due_at=now,
    )
    db.add(job)
    await db.commit()
    return job
