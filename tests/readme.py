"""The code blocks of README.md, and of the README of a folder."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(info: str, page: str = "README.md") -> list[str]:
    """The blocks of a page whose opening line says exactly `info`."""
    return re.findall(rf"^```{info}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(info: str, page: str = "README.md") -> list[str]:
    """Their commands, a line each, without comments."""
    lines = "".join(blocks(info, page)).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#.*", "", line).strip())]
