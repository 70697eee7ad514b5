"""First tables: plan, run, device, series, tick, sample, phase.

Revision ID: 0001
Revises: none
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of `memplan.store.tables` as they were at this revision."""
    op.create_table(
        "plan",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("fits", sa.Boolean(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_index("ix_plan_created_ns", "plan", ["created_ns"])
    op.create_table(
        "run",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("plan_id", sa.Text()),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger()),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger()),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_index("ix_run_started_ns", "run", ["started_ns"])
    op.create_table(
        "device",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("uuid", sa.Text(), primary_key=True),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("run_id", "entity", "metric"),
    )
    op.create_table(
        "tick",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
        ),
        sa.Column("t_ns", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_tick_t_ns", "tick", ["t_ns"])
    op.create_table(
        "sample",
        sa.Column("seq", sa.BigInteger(), sa.ForeignKey("tick.seq"), primary_key=True),
        sa.Column("series_id", sa.Integer(), sa.ForeignKey("series.id"), primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "phase",
        sa.Column("run_id", sa.Text(), primary_key=True),
        sa.Column("pid", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("started_ns", sa.BigInteger(), primary_key=True),
        sa.Column("ended_ns", sa.BigInteger()),
        sa.Column("document", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("phase", "sample", "tick", "series", "device", "run", "plan"):
        op.drop_table(table)
