"""Finds objects that a tenant's own database role put on our tables, so that our sessions would run its code.

A login that works as a tenant's role keeps its own rights: all code in its session may `SET ROLE` to every other role of the login.
A trigger, or a function that a default calls, runs in the session that writes. So if the login is not the role itself, our tables
must carry no code of others. A tenant's own login loses nothing by such code.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from pulso_etl.sync.errors import SchemaRefused

HARMLESS = (
    *("now", "transaction_timestamp", "statement_timestamp", "clock_timestamp"),
    *("nextval", "gen_random_uuid", "uuidv4", "uuidv7"),
)
"""The server's functions that an expression may call although they are not immutable. Other functions, such as `set_config` and
functions that take a query as text, can do anything."""

SHARED = "SELECT session_user <> current_user"
OURS = r"""
WITH RECURSIVE ours (oid, root) AS (
    SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND relkind IN ('r', 'p', 'v', 'm', 'f') AND (relname = ANY(%(tables)s) OR relname LIKE 'etl\_%%')
    UNION SELECT inhrelid, root FROM pg_inherits JOIN ours ON inhparent = ours.oid
)
"""
"""Our tables, their partitions, and all tables that inherit from them. Tables whose names begin with `etl_` are ours."""
LOCKABLE = OURS + (  # noqa: S608 - made of constants
    "SELECT nspname, relname FROM ours JOIN pg_class c ON c.oid = ours.oid JOIN pg_namespace n ON n.oid = relnamespace "
    "WHERE root = c.oid AND relkind IN ('r', 'p') AND relname = ANY(%(locked)s) "
    "ORDER BY array_position(%(locked)s::text[], relname::text)"
)
RECORDS = (
    *("etl_quarantine", "etl_changes", "etl_changed_rows", "etl_changed_days"),
    *("etl_digests", "etl_watermarks", "etl_running", "etl_days", "etl_extractions"),
)
"""Loads, and the recovery that ends them, also write to these tables. A load locks them in this order. Launches and alerts wait for
each other on our other tables, and must not wait for a load."""
EXPRESSIONS = """
expressions (relid, kind, name, told, classid, objid, tree) AS (
    SELECT relid, CASE WHEN attgenerated = '' THEN 'default of the column' ELSE 'expression of the column' END, attname,
        format('ALTER TABLE %%s ALTER COLUMN %%I DROP %%s', relid::regclass, attname,
            CASE WHEN attgenerated = '' THEN 'DEFAULT' ELSE 'EXPRESSION' END),
        'pg_attrdef'::regclass, d.oid, adbin::text
    FROM tables JOIN pg_attrdef d ON adrelid = relid JOIN pg_attribute ON attrelid = relid AND attnum = adnum
    UNION ALL
    SELECT relid, 'constraint', conname, format('ALTER TABLE %%s DROP CONSTRAINT %%I', relid::regclass, conname),
        'pg_constraint'::regclass, k.oid, conbin::text
    FROM tables JOIN pg_constraint k ON conrelid = relid WHERE contype = 'c' AND coninhcount = 0
    UNION ALL
    SELECT relid, 'index', i.relname, format('DROP INDEX %%s', i.oid::regclass), 'pg_class'::regclass, i.oid,
        concat(indexprs::text, indpred::text)
    FROM tables JOIN pg_index ON indrelid = relid JOIN pg_class i ON i.oid = indexrelid WHERE NOT i.relispartition
    UNION ALL
    SELECT relid, 'partitioning', '', format('DROP TABLE %%s', relid::regclass), 'pg_class'::regclass, relid, partexprs::text
    FROM tables JOIN pg_partitioned_table ON partrelid = relid
)
"""
STRANGERS = f"""
{OURS}, tables (relid, relkind) AS (SELECT DISTINCT c.oid, relkind FROM ours JOIN pg_class c ON c.oid = ours.oid),
{EXPRESSIONS}, found (relid, kind, name, told) AS (
    SELECT relid, 'in the place of the table a', lower(word), format('DROP %%s %%s', word, relid::regclass)
    FROM tables JOIN (VALUES ('v', 'VIEW'), ('m', 'MATERIALIZED VIEW'), ('f', 'FOREIGN TABLE')) AS k (kind, word) ON kind = relkind
    UNION ALL
    SELECT relid, 'trigger', tgname, format('DROP TRIGGER %%I ON %%s', tgname, relid::regclass)
    FROM tables JOIN pg_trigger ON tgrelid = relid WHERE NOT tgisinternal AND tgparentid = 0
    UNION ALL
    SELECT relid, 'rule', rulename, format('DROP RULE %%I ON %%s', rulename, relid::regclass)
    FROM tables JOIN pg_rewrite ON ev_class = relid WHERE relkind IN ('r', 'p')
    UNION ALL
    SELECT relid, 'row security policy', polname, format('DROP POLICY %%I ON %%s', polname, relid::regclass)
    FROM tables JOIN pg_policy ON polrelid = relid
    UNION ALL
    SELECT inhparent, 'table that inherits from it', c.relname,
        format('ALTER TABLE %%s NO INHERIT %%s', c.oid::regclass, inhparent::regclass)
    FROM tables JOIN pg_inherits ON inhparent = relid JOIN pg_class c ON c.oid = inhrelid WHERE NOT relispartition
    UNION ALL
    SELECT relid, 'table that it inherits from', p.relname, format(
        CASE WHEN p.relkind = 'p' THEN 'ALTER TABLE %%2$s DETACH PARTITION %%1$s' ELSE 'ALTER TABLE %%1$s NO INHERIT %%2$s' END,
        relid::regclass, p.oid::regclass)
    FROM tables JOIN pg_inherits ON inhrelid = relid JOIN pg_class p ON p.oid = inhparent WHERE p.oid NOT IN (SELECT oid FROM ours)
    UNION ALL
    SELECT relid, 'foreign key', conname, format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname)
    FROM tables JOIN pg_constraint ON contype = 'f' AND conparentid = 0 AND (conrelid = relid OR confrelid = relid)
    WHERE conrelid NOT IN (SELECT oid FROM ours) OR confrelid NOT IN (SELECT oid FROM ours)
    UNION ALL
    SELECT relid, 'type of the column', attname, format('ALTER TABLE %%s DROP COLUMN %%I', relid::regclass, attname)
    FROM tables JOIN pg_attribute ON attrelid = relid AND attnum > 0 AND NOT attisdropped JOIN pg_type t ON t.oid = atttypid
    WHERE typnamespace <> 'pg_catalog'::regnamespace AND typtype <> 'e'
    UNION ALL
    SELECT relid, kind, name, told FROM expressions e
    WHERE EXISTS (
        SELECT FROM pg_depend d LEFT JOIN pg_type t ON refclassid = 'pg_type'::regclass AND t.oid = refobjid
        WHERE d.classid = e.classid AND d.objid = e.objid
            AND refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass) AND typtype IS DISTINCT FROM 'e'
    ) OR EXISTS (
        SELECT FROM regexp_matches(tree, ':(?:op)?funcid ([1-9][0-9]*)', 'g') AS m (number) JOIN pg_proc p ON p.oid = number[1]::oid
        WHERE provolatile <> 'i' AND NOT (pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(%(harmless)s))
    )
)
SELECT relid::regclass::text, kind, name, told FROM found WHERE session_user <> current_user ORDER BY 1, 2, 3
"""  # noqa: S608 - made of constants
"""Every object that runs in a session that uses the tables and that Pulso ETL has not made: the table, its kind, its name, and the
statement that drops it. The server's own objects have no entry in pg_depend, so an object with an entry belongs to somebody."""


def strangers(conn: psycopg.Connection, schema: str, tables: Sequence[str] = ()) -> list[str]:
    """A sentence for each object of others on the tables, and on all tables whose names begin with `etl_`. It has the statement
    that drops the object. The list is empty if the login works as itself."""
    values = {"schema": schema, "tables": list(tables), "harmless": list(HARMLESS)}
    return [
        f"{table}: {kind} {name}".rstrip() + f": {told}" for table, kind, name, told in conn.execute(STRANGERS, values).fetchall()
    ]


def refuse_strangers(conn: psycopg.Connection, schema: str, *tables: str) -> None:
    """Refuses the tables, and all tables whose names begin with `etl_`, if `strangers` finds something on them.

    Runs in the caller's transaction. Until that ends, nobody can add an object to the tables or to RECORDS. Raises SchemaRefused.
    """
    if conn.execute(SHARED).fetchone() != (True,):
        return
    for where in conn.execute(LOCKABLE, {"schema": schema, "tables": list(tables), "locked": [*tables, *RECORDS]}).fetchall():
        # This is the weakest lock for which triggers, rules, constraints and indexes of others have to wait.
        conn.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(*where)))
    if found := strangers(conn, schema, tables):
        raise SchemaRefused(
            f"tables in schema {schema} carry objects that Pulso ETL has not made. Their code would run as the login "
            f"{conn.info.user}, which may work as other roles too. Nothing was loaded. Drop the objects, or give the tenant a "
            "login of its own (database_url_env): " + "; ".join(found)
        )
