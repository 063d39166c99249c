"""A host application with extensions, errors and schemas of its own, without jobapi and with it."""

from __future__ import annotations

from typing import Any

import flask_migrate
import marshmallow
from flask import Flask, jsonify, request
from flask.views import MethodView
from flask_jwt_extended import JWTManager, create_access_token, get_jwt_identity, jwt_required
from flask_smorest import Api, Blueprint
from flask_sqlalchemy import SQLAlchemy

from jobapi import JobAPI

from .factories import World

HTML_404 = "<!doctype html><h1>The host has no such page</h1>"
HTML_405 = "<!doctype html><h1>The host does not do that</h1>"
HTML_500 = "<!doctype html><h1>The host is sorry</h1>"
SECRET_KEY = "the host's own secret"
PREFIX = "/job-api"
"""The path below which a ``Host`` serves jobapi."""


class Job(marshmallow.Schema):
    """The host has a schema of the same name as ours."""

    title = marshmallow.fields.String(required=True)


def make_host(url: str, **config: Any) -> tuple[Flask, SQLAlchemy]:
    """The application without jobapi, and its database."""
    app = Flask("host")
    app.config |= {
        "SECRET_KEY": SECRET_KEY,
        "SQLALCHEMY_DATABASE_URI": url.replace("postgresql://", "postgresql+psycopg://"),
        "JWT_SECRET_KEY": "the host's own key for its own tokens",
        "JWT_HEADER_TYPE": "Token",
        "API_TITLE": "Host",
        "API_VERSION": "7",
        "OPENAPI_VERSION": "3.0.2",
        "OPENAPI_URL_PREFIX": "/host-docs",
        "MAX_CONTENT_LENGTH": 500_000,
        **config,
    }
    db = SQLAlchemy(app)

    class User(db.Model):
        __tablename__ = "users"
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String(50))

    with app.app_context():
        db.create_all()
        db.session.add(User(name="host's own user"))
        db.session.commit()

    jwt = JWTManager(app)

    @jwt.unauthorized_loader
    def unauthorized(reason: str) -> Any:
        return jsonify(host="who are you?"), 401

    app.register_error_handler(404, lambda error: (HTML_404, 404))
    app.register_error_handler(405, lambda error: (HTML_405, 405))
    app.register_error_handler(500, lambda error: (HTML_500, 500))

    things = Blueprint("things", "things", url_prefix="/things")

    @things.route("")
    class Things(MethodView):
        @things.response(200, Job(many=True))
        def get(self) -> Any:
            return [{"title": user.name} for user in db.session.scalars(db.select(User))]

        @things.arguments(Job)
        @things.response(201, Job)
        def post(self, body: Any) -> Any:
            return body

    Api(app).register_blueprint(things)

    @app.get("/")
    def home() -> str:
        return "<h1>Host</h1>"

    @app.get("/login")
    def log_in() -> Any:
        return create_access_token("7")

    @app.get("/me")
    @jwt_required()
    def me() -> Any:
        return jsonify(id=get_jwt_identity())

    @app.post("/echo")
    def echo() -> Any:
        return {"length": len(request.get_data())}

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("a fault of the host's")

    return app, db


# The requests to the host, with and without jobapi.
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/jobs", {}),
    ("GET", "/workspace/1/jobs", {}),
    ("GET", "/job-apiary", {}),
    ("POST", "/", {}),
    ("DELETE", "/things", {}),
    ("GET", "/things", {}),
    ("POST", "/things", {"json": {"title": "x"}}),
    ("POST", "/things", {"json": {"name": "x"}}),
    ("POST", "/things", {"data": b"{", "content_type": "application/json"}),
    ("GET", "/me", {}),
    ("GET", "/me", {"headers": {"Authorization": "Bearer x"}}),
    ("GET", "/boom", {}),
    ("POST", "/echo", {"data": b"x" * 600_000}),
    ("POST", "/echo", {"data": b"x" * 400_000}),
    ("OPTIONS", "/things", {}),
    ("HEAD", "/", {}),
    ("GET", "/host-docs/openapi.json", {}),
]


def answers(app: Flask) -> list[tuple[int, dict[str, str], bytes]]:
    """What the host answers to each of them."""
    client = app.test_client()
    return [
        (response.status_code, dict(response.headers), response.data)
        for response in (
            client.open(path, method=method, buffered=True, **kw) for method, path, kw in REQUESTS
        )
    ]


class Host:
    """A host with jobapi in it, on a migrated database."""

    def __init__(self, url: str, prefix: str = PREFIX, current_user: Any = None, **config: Any):
        self.app, self.db = make_host(url, **config)
        JobAPI(self.app, url_prefix=prefix, current_user=current_user)
        with self.app.extensions["jobapi"].migrating():
            flask_migrate.upgrade()
        self.world = World(self.app)

    def close(self) -> None:
        with self.app.app_context():
            self.db.session.remove()
            for engine in self.db.engines.values():
                engine.dispose()
        self.app.extensions["jobapi"].close()


def who() -> str | None:
    """A ``current_user`` that trusts a header."""
    return request.headers.get("X-Host-User")


def as_host_user(world: World, method: str, path: str, user: str | None, **kw: Any) -> Any:
    """A request of a user whom ``who`` recognizes."""
    headers = {**kw.pop("headers", {}), **({} if user is None else {"X-Host-User": user})}
    return world.call(method, PREFIX + path, headers=headers, **kw)


class Thing:
    """Something with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)
