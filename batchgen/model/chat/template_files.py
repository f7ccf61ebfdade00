"""A model's own chat templates: those of its tokenizer, otherwise those of its processor, as transformers reads them.

Older multi-modal checkpoints keep the template with the processor. Knows nothing about what a template says.
"""

from __future__ import annotations

import json
from pathlib import Path

KEY = "chat_template"
IN_CONFIGS = ("tokenizer_config.json", "processor_config.json", "chat_template.json")  # in this order


def read_templates(folder: Path) -> dict[str, str]:
    """A model's templates by name, from the first place that has any; none if no place has.

    Raises a one-line `ValueError` that names the file if what is there cannot be read as templates.
    """
    own = folder / "chat_template.jinja"
    files = [(own, "default")] if own.is_file() else []
    files += [(path, path.stem) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    if files:
        return {name: _read_text(path) for path, name in files}
    configs = (folder / name for name in IN_CONFIGS)
    return next(filter(None, map(_of_config, configs)), {})


def _of_config(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ": it is nested too deeply"
        raise ValueError(f"{path} is not JSON{line}") from None
    given = config.get(KEY) if isinstance(config, dict) else None
    templates = _named(given)
    if not templates and given:
        raise ValueError(f"{KEY} in {path} is neither a text nor texts with names")
    return {name: text for name, text in templates.items() if text.strip()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _named(templates: object) -> dict[str, str]:
    """Templates by name, from one template, an object, or a list of objects with `name` and `template`."""
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, dict):
        return {name: text for name, text in templates.items() if isinstance(text, str)}
    if not isinstance(templates, list) or not all(map(_has_name, templates)):
        return {}
    return {item["name"]: item["template"] for item in templates if isinstance(item["template"], str)}


def _has_name(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str) and "template" in item
