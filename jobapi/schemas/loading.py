"""Request bodies and queries, loaded by their schemas.

marshmallow takes 30 µs to load a job or a report, because it always collects what error messages
would need. That is half of the time of a request with many of them. So a schema is compiled once
into a function that takes 4 µs, but accepts only what it knows to be valid. marshmallow loads
everything else, and explains what is wrong. Both call the same fields and validators;
``tests/schemas/test_loading.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar, cast

from marshmallow import RAISE, Schema, ValidationError, fields, missing, post_load

MAX_UNKNOWN = 20
"""How many unknown fields are named; more are counted."""

Load = Callable[[Any], Any]


class Base(Schema):
    """Part of a request: unknown fields are refused."""

    class Meta:
        unknown = RAISE

    PATHS: ClassVar[str] = ""
    """The name whose paths may be query parameters, too: see ``query_paths``."""

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Check and change the object as a whole, after its fields have been loaded."""
        return data

    @post_load
    def _complete(self, data: dict[str, Any], **kw: Any) -> dict[str, Any]:
        return self.complete(data)

    def load(self, data: Any, **kw: Any) -> Any:
        """Check how many fields and items there are before checking their content."""
        if not any(kw.values()):
            with suppress(KeyError, ValidationError):
                return self._load_valid(data)
        if isinstance(data, Mapping):
            self._check_bounds(data, kw.get("unknown") or self.unknown)
        return super().load(data, **kw)

    @cached_property
    def _load_valid(self) -> Load:
        return loader(self)

    def _check_bounds(self, data: Mapping[str, Any], unknown: str) -> None:
        if unknown == RAISE:
            more = len(data) - sum(name in data for name in self.fields)
            if more > MAX_UNKNOWN:
                raise ValidationError(
                    f"{more:,} fields are unknown; send only fields that the documentation lists."
                )
        wrong: dict[str, Any] = {}
        for name, field in self.fields.items():
            if isinstance(field, fields.List) and isinstance(data.get(name), list):
                try:
                    field._validate(data[name])
                except ValidationError as error:
                    wrong[name] = error.messages
        if wrong:
            raise ValidationError(wrong)


def loader(schema: Base) -> Load:
    """Compile a schema into a function that loads a valid object.

    It raises ``KeyError`` or ``ValidationError`` for what may be invalid, and for nulls: whether
    they are allowed is left to marshmallow. A list's length is checked before its items.
    """
    load_field = {name: _field_loader(field) for name, field in schema.fields.items()}
    required = {name for name, field in schema.fields.items() if field.required}
    defaults = {
        name: field.load_default
        for name, field in schema.fields.items()
        if field.load_default is not missing
    }

    def load(data: Any) -> Any:
        if type(data) is not dict:
            raise ValidationError(_UNSURE)
        loaded = {k: load_field[k](value) for k, value in data.items() if value is not None}
        if len(loaded) < len(data) or not loaded.keys() >= required:
            raise ValidationError(_UNSURE)
        return schema.complete({**defaults, **loaded})

    return load


_UNSURE = "marshmallow says what is wrong."


def _field_loader(field: fields.Field[Any]) -> Load:
    if type(field) is fields.Nested:
        return loader(cast(Base, field.schema))
    deserialize, validators = field._deserialize, field.validators
    if isinstance(field, fields.List):
        load_item = _field_loader(field.inner)

        def load_list(values: Any) -> Any:
            if type(values) is not list or None in values:
                raise ValidationError(_UNSURE)
            for validator in validators:
                validator(values)
            return [load_item(value) for value in values]

        return load_list

    def load(value: Any) -> Any:
        value = deserialize(value, None, None)
        for validator in validators:
            validator(value)
        return value

    return load
