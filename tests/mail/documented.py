"""Holds every answer of the partners' API to its OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs

from tstack.mail.api.openapi import document

DOCUMENT = document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def valid(schema: Any, value: Any) -> None:
    """The value is what the schema says; names in it are the document's."""
    jsonschema_rs.Draft202012Validator({**schema, "components": {"schemas": SCHEMAS}}).validate(value)


def check(method: str, raw_path: str, status: int, content_type: str, value: Any) -> None:
    """Raise unless the answer is one that the document knows. What is not in the document at all is let through."""
    for path, operations in DOCUMENT["paths"].items():
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), raw_path) and method.lower() in operations:
            response = operations[method.lower()]["responses"][str(status)]
            if "content" in response:
                valid(response["content"][content_type]["schema"], value)
            else:
                assert value is None
            return
