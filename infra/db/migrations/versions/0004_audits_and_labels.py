"""audits of bundles in use, the rows they looked at, and labels that arrive late"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

ONLY_ADD = """
CREATE FUNCTION audits_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audits is append-only';
END $$
"""
GUARD = """
CREATE TRIGGER audits_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audits
FOR EACH STATEMENT EXECUTE FUNCTION audits_are_append_only()
"""


def upgrade() -> None:
    op.create_table('audits',
    sa.Column('run_id', sa.String(length=36), nullable=False),
    sa.Column('number', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('workload', sa.Text(), nullable=False),
    sa.Column('bundle_hash', sa.String(length=64), nullable=False),
    sa.Column('verdict', sa.String(length=16), nullable=False),
    sa.Column('state', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
    sa.Column('report', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
    sa.Column('routes', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('usd', sa.Float(precision=53), nullable=False),
    sa.ForeignKeyConstraint(['bundle_hash'], ['bundles.hash']),
    sa.ForeignKeyConstraint(['run_id'], ['runs.id']),
    sa.PrimaryKeyConstraint('run_id'),
    sa.UniqueConstraint('number')
    )
    op.create_index('audits_by_bundle', 'audits', ['bundle_hash', 'number'], unique=False)
    op.execute(ONLY_ADD)
    op.execute(GUARD)
    op.create_table('audited_rows',
    sa.Column('bundle_hash', sa.String(length=64), nullable=False),
    sa.Column('record_key', sa.String(length=64), nullable=False),
    sa.Column('place', sa.BigInteger(), nullable=False),
    sa.Column('audit_run', sa.String(length=36), nullable=False),
    sa.Column('route_run', sa.String(length=36), nullable=False),
    sa.Column('record_id', sa.Text(), nullable=False),
    sa.Column('kept', sa.Boolean(), nullable=False),
    sa.Column('differs', sa.Float(precision=53), nullable=True),
    sa.Column('loss', sa.Float(precision=53), nullable=True),
    sa.Column('counted_by', sa.String(length=36), nullable=True),
    sa.ForeignKeyConstraint(['audit_run'], ['runs.id']),
    sa.ForeignKeyConstraint(['bundle_hash'], ['bundles.hash']),
    sa.ForeignKeyConstraint(['route_run'], ['runs.id']),
    sa.PrimaryKeyConstraint('bundle_hash', 'record_key')
    )
    op.create_index('audited_rows_by_place', 'audited_rows', ['bundle_hash', 'place'], unique=False)
    op.create_table('labels',
    sa.Column('workload', sa.Text(), nullable=False),
    sa.Column('record_id', sa.Text(), nullable=False),
    sa.Column('field', sa.Text(), nullable=False),
    sa.Column('value', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('imported_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('workload', 'record_id', 'field')
    )


def downgrade() -> None:
    op.drop_table('labels')
    op.drop_table('audited_rows')
    op.drop_table('audits')
    op.execute('DROP FUNCTION audits_are_append_only()')
