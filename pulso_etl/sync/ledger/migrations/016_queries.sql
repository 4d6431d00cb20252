-- Queries at the source that load nothing, and what they used.
CREATE TABLE IF NOT EXISTS {schema}.etl_queries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    purpose text NOT NULL,
    run_id text NOT NULL,
    bytes_billed bigint NOT NULL,
    slot_millis bigint NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_queries_finished_at_idx ON {schema}.etl_queries (finished_at);
