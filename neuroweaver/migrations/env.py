"""What Alembic runs: the migrations, on the connection and in the transaction of whoever asks for them."""

from __future__ import annotations

from alembic import context

from neuroweaver.schema import REVISION_TABLE
from neuroweaver.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=REVISION_TABLE,
    render_as_batch=True,  # SQLite changes a column by making its table anew
)
with context.begin_transaction():
    context.run_migrations()
