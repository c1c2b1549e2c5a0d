"""Provenance: the commit of the code."""

import subprocess
from pathlib import Path

CHANGED = "-changed"  # behind the commit that edited code differs from


def git_commit() -> str | None:
    """Return the commit of the code, marked when files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (CHANGED if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def short_commit(commit: object) -> str:
    """Return the first twelve digits of what ``git_commit`` said, and the mark of edited code."""
    text = str(commit or "")
    return text[:12] + CHANGED * text.endswith(CHANGED)
