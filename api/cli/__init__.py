"""The `farm` command. It talks to the API as any client would; only `up`, `demo`, `migrate` and `doctor` reach further in.

Nothing heavy is imported here: `farm --help` loads neither SQLAlchemy nor the embedded farm, and nothing loads torch.
"""

from api.cli.app import main

__all__ = ["main"]
