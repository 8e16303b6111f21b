"""who started a run: a schedule, a delivery, an automation or a person"""

from alembic import op
import sqlalchemy as sa

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('runs', sa.Column('started_by', sa.String(length=16), nullable=True))
    # Of earlier runs the ledger knows those that the dispatcher started, and no others.
    op.execute("UPDATE runs SET started_by = 'delivery' FROM starts WHERE starts.run_id = runs.id")


def downgrade() -> None:
    op.drop_column('runs', 'started_by')
