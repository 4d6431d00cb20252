-- The requested refreshes: who requested them, and their runs.
CREATE TABLE IF NOT EXISTS {schema}.etl_refreshes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id text NOT NULL UNIQUE,
    fingerprint text NOT NULL,
    request jsonb NOT NULL,
    runs jsonb NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_refreshes_fingerprint_idx ON {schema}.etl_refreshes (fingerprint, id DESC);
