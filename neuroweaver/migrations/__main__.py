"""For developers: `python -m neuroweaver.migrations "add answers"` writes a migration to what `tables.py` says."""

from __future__ import annotations

import sys

from alembic import command
from sqlalchemy import StaticPool, create_engine

from neuroweaver import schema


def write(what: str) -> None:
    """The next file of `versions/`: what it takes from the migrations that there are to `tables.py`. Read it over."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        schema.upgrade(connection)
        config = schema.alembic_config(connection)
        config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        command.revision(config, what, autogenerate=True, rev_id=f"{int(schema.newest()) + 1:04}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit('usage: python -m neuroweaver.migrations "what it changes"')
    write(sys.argv[1])
