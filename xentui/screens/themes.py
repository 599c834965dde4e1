"""The console's themes. Blue and orange carry the meaning, which the colour-blind tell apart; red and green do not.

`$primary` (blue) is what is current or runs, `$accent` (orange) what has stopped or wants attention, `$error`
(vermilion, always with a word or sign) what has crashed. `$muted` is for what frames the facts.
"""

from __future__ import annotations

from textual.theme import Theme

TERMINAL_BACKGROUND, TERMINAL_FOREGROUND = "#080b0f", "#d4dbe2"
"""Of the guests' terminals, in every theme: guests choose their colours for a dark one."""

DARK = Theme(
    name="xentui-dark",
    primary="#5aa9ff",
    secondary="#9ecbff",
    accent="#ffa94d",
    warning="#ffa94d",
    error="#ff6b4a",
    success="#5aa9ff",
    foreground="#dfe6ee",
    background="#0e1319",
    surface="#151c24",
    panel="#2b3642",
    dark=True,
    variables={
        "muted": "#8593a1",
        "block-cursor-background": "#24507d",
        "block-cursor-foreground": "#ffffff",
        "input-selection-background": "#24507d",
    },
)
LIGHT = Theme(
    name="xentui-light",
    primary="#0b5cad",
    secondary="#2f77bd",
    accent="#b35900",
    warning="#b35900",
    error="#b3261e",
    success="#0b5cad",
    foreground="#1b2430",
    background="#fbfbf8",
    surface="#f0f0ea",
    panel="#c9ced4",
    dark=False,
    variables={
        "muted": "#66717c",
        "block-cursor-background": "#bcd9f7",
        "block-cursor-foreground": "#10202f",
        "input-selection-background": "#bcd9f7",
    },
)
CONTRAST = Theme(
    name="xentui-contrast",
    primary="#4db2ff",
    secondary="#9fd6ff",
    accent="#ffb000",
    warning="#ffb000",
    error="#ff5a36",
    success="#4db2ff",
    foreground="#ffffff",
    background="#000000",
    surface="#0a0a0a",
    panel="#3a444e",
    dark=True,
    variables={
        "muted": "#b4bfca",
        "block-cursor-background": "#003a78",
        "block-cursor-foreground": "#ffffff",
        "input-selection-background": "#003a78",
    },
)
"""For the back row: presentation mode."""

DEFAULTS = {"muted": "#8593a1"}
"""Variables of ours, for themes that do not have them."""
