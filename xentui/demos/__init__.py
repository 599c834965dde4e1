"""Guided demonstrations, each a Markdown file (docs/demonstrations.md)."""
