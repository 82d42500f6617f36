"""Keys for tests, made by the lines that docs/signing.md tells users to run."""

import re
import subprocess
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "signing.md"


def documented_lines() -> list[str]:
    """The lines of the page that make keys."""
    block = re.search(r"<!-- keys -->\n```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return block[1].strip().splitlines()


def make_keys(directory: Path) -> tuple[Path, Path]:
    """Make a key pair in a directory: the private key, and the public one."""
    directory.mkdir(parents=True, exist_ok=True)
    for line in documented_lines():
        if "aes256" not in line:
            subprocess.run(line, shell=True, check=True, cwd=directory, capture_output=True)
    return directory / "signing.pem", directory / "signing.pub"


def encrypted(private: Path, password: str) -> Path:
    """Encrypt a key as the page says, and return the file."""
    line = next(line for line in documented_lines() if "aes256" in line)
    command = f"{line} -passout 'pass:{password}'"
    subprocess.run(command, shell=True, check=True, cwd=private.parent, capture_output=True)
    return private.parent / "signing-encrypted.pem"
