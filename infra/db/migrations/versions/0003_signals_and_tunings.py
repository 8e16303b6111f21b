"""what tokens say beside the labels; what each use of calibration rows spends"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

OBJECTS = (('completions', 'readings'), ('answers', 'signals'), ('answers', 'signal_usd'))


def upgrade() -> None:
    for table, column in OBJECTS:
        kind = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
        op.add_column(table, sa.Column(column, kind, nullable=True))
    op.create_table('tunings',
    sa.Column('run_id', sa.String(length=36), nullable=False),
    sa.Column('workload', sa.Text(), nullable=False),
    sa.Column('dataset_version', sa.String(length=64), nullable=False),
    sa.Column('evidence', sa.String(length=64), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('delta', sa.Float(precision=53), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['dataset_version'], ['dataset_versions.hash']),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id']),
    sa.PrimaryKeyConstraint('run_id')
    )
    op.create_index('tunings_by_workload', 'tunings', ['workload', 'dataset_version'], unique=False)


def downgrade() -> None:
    op.drop_table('tunings')
    for table, column in reversed(OBJECTS):
        op.drop_column(table, column)
