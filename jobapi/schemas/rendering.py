"""Answers, rendered by their schemas.

The schema that documents an answer also makes it: it is compiled once into a function from a row
to a dictionary. That function costs as much as a dictionary written out by hand, where
marshmallow's ``dump`` would cost more than the query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any

from marshmallow import EXCLUDE, Schema, fields

from .fields import Choice

Show = Callable[[Any], Any]


def renderer(schema: Schema) -> Callable[[Any], dict[str, Any]]:
    """Compile a schema into a function that renders an object, or a dictionary.

    A field shows the object's attribute, or the dictionary's item, of its name, or of its
    ``attribute``; if the schema has a method ``get_NAME``, what that makes of the object. For
    example::

        class Workspace(Response):
            workspace_id = fields.Integer(attribute="id")   # row.id
            role = Choice(Role)                             # the label of row.role
            retention = fields.Nested(Retention)            # get_retention(row), rendered

            @staticmethod
            def get_retention(row): ...

    Of a dictionary, fields that are not required may be missing. Times stay as they are: the JSON
    encoder writes them.
    """
    by_attribute = []
    by_key = []
    for name, field in schema.fields.items():
        source = field.attribute or name
        get = getattr(schema, f"get_{name}", None)
        show = _shown(field)
        by_attribute.append((name, _reader(get or attrgetter(source), show)))
        needed = None if field.required or get is not None else source
        by_key.append((name, needed, _reader(get or itemgetter(source), show)))

    def render(row: Any) -> dict[str, Any]:
        if type(row) is dict:
            return {name: read(row) for name, key, read in by_key if key is None or key in row}
        return {name: read(row) for name, read in by_attribute}

    return render


def _reader(get: Show, show: Show | None) -> Show:
    return get if show is None else lambda row: show(get(row))


def _shown(field: fields.Field[Any]) -> Show | None:
    """How a field shows its value; None: as it is."""
    if isinstance(field, Choice):
        return field.show
    if isinstance(field, fields.Nested):
        show = renderer(field.schema)
        return (lambda value: None if value is None else show(value)) if field.allow_none else show
    if isinstance(field, fields.List):
        return _each(_shown(field.inner), lambda show, values: [show(value) for value in values])
    if isinstance(field, fields.Dict) and field.value_field is not None:
        return _each(
            _shown(field.value_field),
            lambda show, values: {name: show(value) for name, value in values.items()},
        )
    return None


def _each(show: Show | None, all_of: Callable[[Show, Any], Any]) -> Show | None:
    """How a list or a dictionary shows its values with ``show``."""
    if show is None:
        return None
    return lambda values: None if values is None else all_of(show, values)


class Response(Schema):
    """A response body: a later version may add fields, so clients skip what they do not know.

    ``renderer`` says where a field's value comes from.
    """

    class Meta:
        unknown = EXCLUDE

    @classmethod
    def render(cls, row: Any) -> dict[str, Any]:
        """The answer that shows ``row``, ready to be written as JSON."""
        return _compiled(cls)(row)


@cache
def _compiled(schema: type[Schema]) -> Callable[[Any], dict[str, Any]]:
    return renderer(schema())
