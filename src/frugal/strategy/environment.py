"""Which rank this process is, for Lightning: as `frugal.ranks` started or found it, whatever the environment says."""

from __future__ import annotations

from lightning.fabric.plugins.environments import ClusterEnvironment

from frugal.ranks import Group


class Ranks(ClusterEnvironment):
    """Processes that are there already and have found each other; Lightning starts and connects none."""

    def __init__(self, group: Group) -> None:
        self.group = group

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # never asked: the process group stands before Lightning would make it

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.group.size

    def set_world_size(self, size: int) -> None:
        assert size == self.group.size

    def global_rank(self) -> int:
        return self.group.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.group.rank

    def local_rank(self) -> int:
        return self.group.local_rank

    def node_rank(self) -> int:
        return self.group.node
