"""The state folder as a whole, as the daemon opens it.

<state>/lock  state.db  host  spools/
"""

from pathlib import Path

from spoke.state.database import Database
from spoke.state.handles import Handles
from spoke.state.host import host_id
from spoke.state.journal import Journal
from spoke.state.spools import Spools


class StateFolder:
    """Journal, handles and spools over one database and one lock. Built by `open`, ended by `close`."""

    def __init__(self, path: Path, database: Database) -> None:
        self._database = database
        self.path = path
        self.host = host_id(path)
        self.journal = Journal(database)
        self.handles = Handles(database)
        self.spools = Spools(path)

    @classmethod
    def open(cls, path: Path) -> "StateFolder":
        """Claim and open `path`, made if needed; raises ConfigError, which says who has it."""
        database = Database.open(path)
        try:
            return cls(path, database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Commit what waits and give the folder up. Of no effect the second time."""
        self._database.close()
