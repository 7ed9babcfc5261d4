"""The `farm` command. It is a client of the API; only `up`, `demo`, `keys`, `migrate` and `doctor` use the farm's own parts.

Nothing heavy is imported here: `farm --help` loads neither SQLAlchemy nor the embedded farm, and nothing loads torch.
"""

from api.cli.app import main

__all__ = ["main"]
