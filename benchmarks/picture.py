"""Draw what a command prints on a terminal as an SVG, such as the picture of the README.

python benchmarks/picture.py docs/answer.svg dropserve predict --model digits --input examples/digit.json --mc
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 96


def main() -> None:
    """Run the command with colours on, and save what it printed."""
    target, *command = sys.argv[1:]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {' '.join(command)}", style="bold"))
        console.print(Text.from_ansi(done.stdout.rstrip()))
        picture = console.export_svg(title="dropserve")
    # The picture stands on its own: no font is fetched from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL).replace(
        "Fira Code", "DejaVu Sans Mono"
    )
    Path(target).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
