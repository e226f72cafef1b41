"""Colours, shapes and the style sheet of reports. Contender i has the same colour, shape and dash everywhere.

The eight hues of each theme are far apart for colour-blind readers too (the tests measure it); shape and dash tell
apart what colour can't. Charts name colours as CSS variables, so that one chart serves both themes.
"""

from __future__ import annotations

from formwright.report.sheet import RULES

LIGHT = {
    "page": "#fbfbf9", "card": "#ffffff", "ink": "#1b1d22", "soft": "#5d636e", "faint": "#8a909b", "line": "#e3e3de",
    "grid": "#ecece8", "accent": "#2a5db0", "warm": "#fff6e5", "warm-line": "#e9c46a", "code": "#f3f3ef",
    "c0": "#1f66d6", "c1": "#e8820a", "c2": "#7fa85f", "c3": "#b5789a", "c4": "#6a4105", "c5": "#12a5e0",
    "c6": "#86077e", "c7": "#0f4038", "heat": "#86b6f2",
}  # fmt: skip
DARK = {
    "page": "#131519", "card": "#1a1d23", "ink": "#eceef2", "soft": "#a4abb8", "faint": "#7b8391", "line": "#2c313a",
    "grid": "#262a32", "accent": "#8ab4f8", "warm": "#2b2415", "warm-line": "#7a6122", "code": "#20242b",
    "c0": "#4d86ff", "c1": "#e0822a", "c2": "#73e08c", "c3": "#f0b4c4", "c4": "#ead23a", "c5": "#2fc1fb",
    "c6": "#d0459f", "c7": "#6a8f66", "heat": "#1e5bb0",
}  # fmt: skip
HUES = 8
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
DASHES = ([1, 0], [7, 3], [2, 3])
OUTLINES = {
    "circle": "M6 1.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9z",
    "square": "M2 2h8v8h-8z",
    "diamond": "M6 .5L11 6L6 11.5L1 6z",
    "triangle-up": "M6 1L11.2 10.5H.8z",
    "triangle-down": "M6 11L.8 1.5H11.2z",
    "cross": "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, 'Liberation Mono', monospace"


def colour(i: int) -> str:
    """The colour of contender i as a CSS variable."""
    return f"var(--c{i % HUES})"


def shape(i: int) -> str:
    """The shape of contender i's points, by its Vega name."""
    return SHAPES[i % len(SHAPES)]


def dash(i: int) -> list[int]:
    """The dash pattern of contender i's lines."""
    return DASHES[(i // HUES) % len(DASHES)]


def badge(i: int) -> str:
    """Contender i's mark as inline SVG."""
    path = f'<path d="{OUTLINES[shape(i)]}" fill="{colour(i)}"/>'
    return f'<svg class="badge" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>'


def paint(text: str, theme: dict[str, str]) -> str:
    """Text with every colour variable replaced by its value in a theme, for pictures that know no CSS."""
    for name, value in theme.items():
        text = text.replace(f"var(--{name})", value)
    return text


def _variables(theme: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in theme.items())


def sheet() -> str:
    """The page's style sheet: follows the system's theme unless the reader has chosen one; prints light."""
    light, dark = _variables(LIGHT), _variables(DARK)
    themes = (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}"
    )
    return themes + RULES.replace("FONT", FONT).replace("MONO", MONO)
