"""Who calls, and what they may do. Handlers ask for the right they need and see only what belongs to their caller."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a request came with. `owner` stands on everything that it makes."""

    owner: str
    is_admin: bool = False

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs this caller may see; None for all of them."""
        return None if self.is_admin else self.owner


def _anonymous() -> Caller:
    # A farm without keys has one caller, who owns everything and may do everything.
    return Caller(ANONYMOUS, is_admin=True)


Submitter = Annotated[Caller, Depends(_anonymous)]
Reader = Annotated[Caller, Depends(_anonymous)]
Admin = Annotated[Caller, Depends(_anonymous)]
