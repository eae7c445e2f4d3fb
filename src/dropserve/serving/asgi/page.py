"""The same for people: one page, nothing to download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { overflow-x: auto; padding: 0.5rem; border: 1px solid #8885; border-radius: 0.3rem; }
details { border-top: 1px solid #8885; padding: 0.4rem 0; }
summary { cursor: pointer; }
summary b { display: inline-block; width: 3.5rem; }
"""


def page(document: dict[str, Any]) -> str:
    """An OpenAPI document as HTML: a line for each route, its schemas folded behind it."""
    info = document["info"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
            '<p>The same for machines: <a href="openapi.json">openapi.json</a>.</p>',
            *_routes(document),
            "</body></html>",
        ]
    )


def _routes(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
            yield f"{escape(operation['summary'])}</summary>"
            if "requestBody" in operation:
                yield f"<h3>Body</h3>{_content(operation['requestBody']['content'], document)}"
            for status, response in operation["responses"].items():
                yield f"<h3>{status}</h3><p>{escape(response['description'])}</p>"
                yield _content(response["content"], document)
            yield "</details>"


def _content(content: dict[str, Any], document: dict[str, Any]) -> str:
    parts: list[str] = []
    for kind, entry in content.items():
        schema = entry.get("schema", {})
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        shown = f"<pre>{escape(json.dumps(schema, indent=1))}</pre>" if schema else ""
        parts.append(f"<p><code>{escape(kind)}</code></p>{shown}")
    return "".join(parts)
