"""``EncodeError``: the cells, or the config, will not do."""

from configs.user_error import UserError


class EncodeError(UserError):
    """The cells cannot be encoded as configured; nothing was written."""
