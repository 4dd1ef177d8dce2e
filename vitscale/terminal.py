"""What commands show on a terminal: a console, tables, sizes, and names from files as text that steers nothing"""

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200       # columns where the output is no terminal: so many that no table is cut


def console(stderr: bool = False) -> Console:
    """As wide as the terminal, or PLAIN_WIDTH."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


def table(heads: Sequence[str], rows: Iterable[Sequence[RenderableType]] = (), *, words: Sequence[int] = (0,), fold: bool = False,
          title: str | None = None, show_header: bool = True) -> Table:
    """Columns of `words`, by their place, to the left, those of numbers to the right.  `fold`: where there is no room lines are broken.

    Text of a row is no markup.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", show_header=show_header)
    for place, head in enumerate(heads):
        made.add_column(head, justify="left" if place in words else "right", no_wrap=not fold, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in row))
    return made


def say(screen: Console, *lines: str) -> None:
    """Plain lines, as long as they are: no markup, no colours."""
    for line in lines:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """A name from a file without control characters and broken Unicode."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def escape(text: str) -> str:
    """The same where markup is read."""
    return escape_markup(plain(text))


def size(count: float) -> str:
    """12345678 -> '12.3 MB'"""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
