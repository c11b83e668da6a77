"""The code blocks of README.md."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def blocks(info: str) -> list[str]:
    """The blocks whose opening line says exactly `info`."""
    return re.findall(rf"^```{info}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def commands(info: str) -> list[str]:
    """Their commands, a line each, without comments."""
    lines = "".join(blocks(info)).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#.*", "", line).strip())]
