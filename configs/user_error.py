"""``UserError``: what the user can mend, said in a sentence."""


class UserError(ValueError):
    """Base of the errors whose message is all that the user needs."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in place of a traceback (a protocol of IPython)."""
        return [f"{type(self).__name__}: {self}"]
