-- What each load changed: for each day the counts of rows and the figures, and up to a bound the rows before and after.
CREATE TABLE IF NOT EXISTS {schema}.etl_changes (
    load_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stamp timestamptz NOT NULL DEFAULT now(),
    kept text NOT NULL CHECK (kept IN ('rows', 'stamp', 'none')),
    reason text,
    key_columns text[] NOT NULL,
    value_columns text[] NOT NULL,
    undoes bigint,
    undone_by bigint
);
CREATE INDEX IF NOT EXISTS etl_changes_table_idx ON {schema}.etl_changes (table_name, load_id DESC);
CREATE TABLE IF NOT EXISTS {schema}.etl_changed_days (
    load_id bigint NOT NULL,
    day date NOT NULL,
    rows_new bigint NOT NULL,
    rows_changed bigint NOT NULL,
    rows_gone bigint NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    PRIMARY KEY (load_id, day)
);
CREATE TABLE IF NOT EXISTS {schema}.etl_changed_rows (
    load_id bigint NOT NULL,
    day date NOT NULL,
    key text[] NOT NULL,
    old text[],
    new text[]
);
CREATE INDEX IF NOT EXISTS etl_changed_rows_load_idx ON {schema}.etl_changed_rows (load_id, day);
-- Until then no refresh of the project's own accord reads the table: somebody has undone a load.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS held_until timestamptz;
