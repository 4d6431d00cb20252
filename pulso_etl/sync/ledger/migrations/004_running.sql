-- The running attempts. A table may have several, over different days.
CREATE TABLE IF NOT EXISTS {schema}.etl_running (
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (table_name, extraction_id, attempt)
);
-- Before, the watermark's metadata had the attempt. An attempt in the history has ended.
INSERT INTO {schema}.etl_running
SELECT table_name, extraction_id, (metadata->>'attempt')::int, (metadata->>'partition_start')::date,
    (metadata->>'partition_end')::date, (metadata->>'started_at')::timestamptz
FROM {schema}.etl_watermarks w
WHERE last_extraction_status = 'running' AND metadata ? 'started_at' AND NOT EXISTS (
    SELECT FROM {schema}.etl_extractions e
    WHERE e.table_name = w.table_name AND e.extraction_id = w.extraction_id AND e.attempt = (w.metadata->>'attempt')::int
)
ON CONFLICT DO NOTHING;
UPDATE {schema}.etl_watermarks w SET last_extraction_status = 'failed' WHERE last_extraction_status = 'running'
    AND NOT EXISTS (SELECT FROM {schema}.etl_running r WHERE r.table_name = w.table_name);
