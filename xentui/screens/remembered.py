"""What the console remembers from one start to the next: JSON files in the user's configuration folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def folder() -> Path:
    """`$XDG_CONFIG_HOME/xentui`, by default `~/.config/xentui`."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "xentui"


def load(name: str) -> tuple[dict[str, Any], str]:
    """A file's contents, and what is wrong with it in one line ("" for nothing). A file that is not there is empty."""
    path = folder() / name
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{path}: cannot be read: {error.strerror}"
    except ValueError as error:
        return {}, f"{path}: is not JSON ({error}); correct or remove it"
    if not isinstance(data, dict):
        return {}, f"{path}: holds no JSON object; correct or remove it"
    return data, ""


def save(name: str, data: dict[str, Any]) -> str:
    """Write a file whole or not at all; what went wrong in one line, or ""."""
    path = folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(data, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        return f"{path}: cannot be written: {error.strerror}"
    return ""
