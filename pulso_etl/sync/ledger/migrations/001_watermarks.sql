-- How far each table is loaded, and the history of extractions.
CREATE TABLE IF NOT EXISTS {schema}.etl_watermarks (
    table_name text PRIMARY KEY,
    last_extracted_at timestamptz,
    last_partition date,
    recovery_attempts integer NOT NULL DEFAULT 0,
    last_extraction_status text CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {schema}.etl_extractions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    finished_at timestamptz,
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    metadata jsonb NOT NULL DEFAULT '{{}}'
);
CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON {schema}.etl_extractions (table_name, id DESC);
