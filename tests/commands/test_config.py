"""Settings: how they are read and checked at start, and what their errors say."""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from jobapi import create_app
from jobapi.config import ConfigError, Settings, load
from jobapi.store.engine import normalize_url

from ..conftest import SECRET


def test_defaults_are_those_of_production() -> None:
    assert load({}, {}) == Settings()
    assert Settings().env == "production"
    assert not Settings().development


def test_config_wins_over_the_environment_and_others_names_are_left_alone() -> None:
    environ = {"JOBAPI_LOG_LEVEL": "ERROR", "JOBAPI_LOG_FORMAT": "text", "LOG_LEVEL": "x"}
    settings = load({"JOBAPI_LOG_LEVEL": "DEBUG", "SQLALCHEMY_ECHO": True}, environ)
    assert (settings.log_level, settings.log_format) == ("DEBUG", "text")


def test_development_logs_as_text_unless_a_format_is_set() -> None:
    assert load({}, {"JOBAPI_ENV": "development"}).log_format == "text"
    environ = {"JOBAPI_ENV": "development", "JOBAPI_LOG_FORMAT": "json"}
    assert load({}, environ).log_format == "json"


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), (" ON ", True), ("False", False), ("no", False), (False, False)],
)
def test_truth_values_are_read_as_people_write_them(text: Any, value: bool) -> None:
    assert load({"JOBAPI_DOCS_ENABLED": text}, {}).docs_enabled is value


def test_empty_variable_counts_as_not_set() -> None:
    environ = {"JOBAPI_SECRET_KEY": "", "JOBAPI_DATABASE_POOL_SIZE": "", "JOBAPI_ENV": ""}
    assert load({}, environ) == Settings()


def test_secret_of_digits_stays_text() -> None:
    assert load({}, {"JOBAPI_SECRET_KEY": "1" * 40}).secret_key == "1" * 40


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ENV", "prod", "must be one of production, development"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING, ERROR"),
        ("DOCS_ENABLED", "perhaps", "must be true or false"),
        ("ACCESS_TOKEN_SECONDS", "0", "a whole number from 1"),
        ("ACCESS_TOKEN_SECONDS", "1e5", "a whole number from 1"),
        ("ACCESS_TOKEN_SECONDS", "99999999999", "a whole number from 1"),
        ("TRUSTED_PROXIES", "-1", "a whole number from 0"),
        ("MAX_BODY_BYTES", "5", "a whole number from 1024"),
        ("SECRET_KEY", "short", "at least 32 bytes"),
        ("DATABASE_URL", "not a url", "postgresql://user:password@host/name"),
        ("LISTEN_DATABASE_URL", "not a url", "postgresql://user:password@host/name"),
        ("LISTEN_DATABASE_URL", "sqlite:///file", "only Postgres"),
        ("DATABASE_URL", "mysql://u:p@h/n", "jobapi works on sqlite and postgresql"),
        ("DATABASE_URL", "sqlite://", "name a file"),
        ("DATABASE_URL", "sqlite:///:memory:", "name a file"),
        ("DATABASE_URL", "sqlite+pysqlcipher:///file", "write postgresql:// or sqlite://"),
        ("DATABASE_URL", "postgresql+asyncpg://h/n?ssl=require", "does not know: ssl"),
        ("LISTEN_DATABASE_URL", "postgres://h/n?pgbouncer=true", "does not know: pgbouncer"),
        ("DATABASE_URL", "nonsense+driver://h/n", "jobapi works on sqlite and postgresql"),
        ("CORS_ORIGINS", "app.example.com", "https://app.example.com"),
        ("CORS_ORIGINS", "https://app.example.com/", "without a trailing slash"),
        ("CORS_ORIGINS", "https://app.example.com/path", "without a trailing slash"),
        ("CORS_ORIGINS", "https://*.example.com", "a wildcard"),
        ("CORS_ORIGINS", "https://app.example.com,https://.*\\.example\\.com", "a pattern"),
        ("CORS_ORIGINS", "https://app[0-9].example.com", "a pattern"),
        ("CORS_ORIGINS", "https://(a|b).example.com", "a pattern"),
        ("CORS_ORIGINS", "https://user@app.example.com", "write each in full"),
        ("CORS_ORIGINS", "https://app.example.com:", "write each in full"),
        ("CORS_ORIGINS", "https://app.example.com?", "write each in full"),
        ("CORS_ORIGINS", "null", "write each in full"),
    ],
)
def test_bad_value_is_refused_with_what_to_do(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"JOBAPI_{name}") as refused:
        load({}, {f"JOBAPI_{name}": value})
    assert says in str(refused.value)


def test_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        load({}, {"JOBAPI_DATABASE_URL": "postgresql//user:s3cret@host/name"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("JOBAPI_SECRET", "did you mean JOBAPI_SECRET_KEY?"),
        ("JOBAPI_DATABSE_URL", "did you mean JOBAPI_DATABASE_URL?"),
        ("JOBAPI_QQQ", "see docs/settings.md."),
    ],
)
def test_unknown_setting_warns_with_the_nearest(
    caplog: Any, monkeypatch: Any, name: str, hint: str
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    load({}, {name: "x"})
    assert f"Unknown setting {name}" in caplog.text
    assert hint in caplog.text


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "postgresql",
        "postgresql+psycopg",
        "postgresql+psycopg2",
        "postgresql+asyncpg",
        "postgresql+pg8000",
        "postgres+psycopg2",
    ],
)
def test_postgres_urls_are_taken_in_every_spelling(scheme: str) -> None:
    url = normalize_url(f"{scheme}://user:password@host:5433/name?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert url.port == 5433
    assert url.query == {"sslmode": "require"}


def test_production_without_a_secret_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="JOBAPI_SECRET_KEY is not set") as refused:
        create_app({"JOBAPI_INSTANCE_PATH": str(tmp_path)})
    assert "token_urlsafe" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_development_makes_a_secret_and_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "instance"
    settings = {"JOBAPI_ENV": "development", "JOBAPI_INSTANCE_PATH": str(folder)}
    secrets = set()
    for _ in range(2):
        app = create_app(settings)
        secrets.add(app.extensions["jobapi"].private.config["JWT_SECRET_KEY"])
    assert len(secrets) == 1
    kept = folder / "development-secret"
    assert kept.read_text() in secrets
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["development-secret"]


def test_sqlite_in_the_instance_folder_is_the_default(tmp_path: Path) -> None:
    app = create_app({"JOBAPI_SECRET_KEY": SECRET, "JOBAPI_INSTANCE_PATH": str(tmp_path / "new")})
    engine = app.extensions["jobapi"].engine
    assert engine.url.database == str(tmp_path / "new" / "jobapi.sqlite3")
    with engine.connect() as connection:
        pragma = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    assert pragma == "wal"
    engine.dispose()
