"""the audit of promotions; bundles without a run"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

# What the gate let pass before there was an audit, so that going back works from the first day on.
EARLIER = """
INSERT INTO promotion_audit (at, who, act, workload, from_hash, to_hash, run_id)
SELECT at, 'not recorded', 'promoted', workload,
       lag(bundle_hash) OVER (PARTITION BY workload ORDER BY at), bundle_hash, run_id
FROM promotions WHERE passed ORDER BY at
"""
ONLY_ADD = """
CREATE FUNCTION promotion_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'promotion_audit is append-only';
END $$
"""
GUARD = """
CREATE TRIGGER promotion_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON promotion_audit
FOR EACH STATEMENT EXECUTE FUNCTION promotion_audit_is_append_only()
"""


def upgrade() -> None:
    op.alter_column('bundles', 'run_id', existing_type=sa.String(length=36), nullable=True)
    op.create_table('promotion_audit',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('who', sa.Text(), nullable=False),
    sa.Column('act', sa.String(length=16), nullable=False),
    sa.Column('workload', sa.Text(), nullable=False),
    sa.Column('from_hash', sa.String(length=64), nullable=True),
    sa.Column('to_hash', sa.String(length=64), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('gate', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('run_id', sa.String(length=36), nullable=True),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('run_id', 'to_hash', 'act', name='promotion_audit_once_a_run')
    )
    op.create_index(op.f('ix_promotion_audit_workload'), 'promotion_audit', ['workload'], unique=False)
    op.execute(EARLIER)
    op.execute(ONLY_ADD)
    op.execute(GUARD)


def downgrade() -> None:
    op.drop_table('promotion_audit')
    op.execute('DROP FUNCTION promotion_audit_is_append_only()')
    op.execute('DELETE FROM aliases WHERE bundle_hash IN (SELECT hash FROM bundles WHERE run_id IS NULL)')
    op.execute('DELETE FROM bundles WHERE run_id IS NULL')
    op.alter_column('bundles', 'run_id', existing_type=sa.String(length=36), nullable=False)
