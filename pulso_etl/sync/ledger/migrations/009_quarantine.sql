-- Rows that can't be loaded.
CREATE TABLE IF NOT EXISTS {schema}.etl_quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    partition date,
    reason text NOT NULL,
    column_name text NOT NULL,
    source_row jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS etl_quarantine_table_idx ON {schema}.etl_quarantine (table_name, extraction_id);
