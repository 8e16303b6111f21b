"""what was said to have changed, what was started for it, and who is to be told what"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def _created(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False)


def _json() -> postgresql.JSONB:
    return postgresql.JSONB(none_as_null=True, astext_type=sa.Text())


def upgrade() -> None:
    op.create_table('deliveries',
    sa.Column('key', sa.String(length=64), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('delivery_id', sa.Text(), nullable=False),
    sa.Column('body_hash', sa.String(length=64), nullable=False),
    sa.Column('event', sa.Text(), nullable=False),
    sa.Column('datasets', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    _created('received_at'),
    sa.PrimaryKeyConstraint('key')
    )
    op.create_index('deliveries_by_time', 'deliveries', ['received_at'], unique=False)
    op.create_table('changes',
    sa.Column('number', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('delivery_key', sa.String(length=64), nullable=False),
    sa.Column('dataset', sa.Text(), nullable=False),
    sa.Column('state', sa.String(length=16), server_default='waiting', nullable=False),
    _created('due_at'),
    sa.Column('tries', sa.Integer(), server_default='0', nullable=False),
    sa.Column('dataset_version', sa.String(length=64), nullable=True),
    sa.Column('run_id', sa.String(length=36), nullable=True),
    sa.Column('detail', sa.Text(), server_default='', nullable=False),
    sa.Column('settled_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['delivery_key'], ['deliveries.key']),
    sa.PrimaryKeyConstraint('number')
    )
    op.create_index('changes_waiting', 'changes', ['state', 'dataset', 'due_at'], unique=False)
    op.create_index('changes_by_delivery', 'changes', ['delivery_key'], unique=False)
    op.create_table('starts',
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('flow', sa.Text(), nullable=False),
    sa.Column('parameters', _json(), nullable=False),
    sa.Column('run_id', sa.String(length=36), nullable=True),
    _created('created_at'),
    sa.PrimaryKeyConstraint('key')
    )
    op.create_table('notices',
    sa.Column('endpoint', sa.Text(), nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('event', sa.Text(), nullable=False),
    sa.Column('payload', _json(), nullable=False),
    sa.Column('state', sa.String(length=16), server_default='waiting', nullable=False),
    _created('due_at'),
    sa.Column('tries', sa.Integer(), server_default='0', nullable=False),
    sa.Column('error', sa.Text(), server_default='', nullable=False),
    _created('created_at'),
    sa.Column('settled_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('endpoint', 'key')
    )
    op.create_index('notices_waiting', 'notices', ['state', 'due_at'], unique=False)
    op.create_table('polls',
    sa.Column('dataset', sa.Text(), nullable=False),
    sa.Column('seen', sa.String(length=64), nullable=False),
    _created('looked_at'),
    sa.PrimaryKeyConstraint('dataset')
    )


def downgrade() -> None:
    for table in ('polls', 'notices', 'starts', 'changes', 'deliveries'):
        op.drop_table(table)
