"""Who asks, by token, and what they may do: read, propose (a pull request), write."""

from dataclasses import dataclass

from testhub.repositories import Repository


@dataclass(frozen=True, slots=True)
class Account:
    """A token and whose it is. `orgs` are the organisations its user belongs to."""

    user: str
    token: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs


def sees(account: Account | None, repository: Repository) -> bool:
    return not repository.private or (account is not None and account.owns(repository.namespace))


def admitted(account: Account | None, repository: Repository) -> bool:
    """Whether a gated repository's content is open to this account."""
    if not repository.gated:
        return True
    return account is not None and (account.owns(repository.namespace) or account.user in repository.granted)
