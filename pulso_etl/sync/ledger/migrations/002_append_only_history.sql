-- The history has only finished attempts, and its rows never change. Before, it also had running attempts, with columns that are
-- gone now. to_jsonb reads a column that may not exist.
ALTER TABLE {schema}.etl_extractions
    ADD COLUMN IF NOT EXISTS status text CHECK (status IN ('success', 'failed')),
    ADD COLUMN IF NOT EXISTS started_at timestamptz;
UPDATE {schema}.etl_extractions e
SET status = CASE WHEN to_jsonb(e)->>'last_extraction_status' = 'success' THEN 'success' ELSE 'failed' END,
    error_message = CASE WHEN to_jsonb(e)->>'last_extraction_status' = 'running'
        THEN 'the attempt ended without a word: its process or its server session was killed' ELSE error_message END,
    started_at = (to_jsonb(e)->>'created_at')::timestamptz,
    finished_at = coalesce(finished_at, (to_jsonb(e)->>'updated_at')::timestamptz),
    extraction_id = coalesce(extraction_id, '')
WHERE status IS NULL AND NOT EXISTS (
    SELECT FROM {schema}.etl_watermarks w
    WHERE w.table_name = e.table_name AND w.last_extraction_status = 'running' AND w.extraction_id = e.extraction_id
      AND to_jsonb(e)->>'last_extraction_status' = 'running'
);
-- The watermark's row now has the running attempts.
UPDATE {schema}.etl_watermarks w
SET metadata = jsonb_build_object('attempt', e.attempt, 'partition_start', e.partition_start, 'partition_end', e.partition_end,
    'started_at', to_jsonb(e)->'created_at')
FROM {schema}.etl_extractions e
WHERE e.status IS NULL AND e.id = (
    SELECT max(o.id) FROM {schema}.etl_extractions o WHERE o.status IS NULL AND o.table_name = w.table_name
);
DELETE FROM {schema}.etl_extractions WHERE status IS NULL;
UPDATE {schema}.etl_watermarks SET last_extraction_status = 'failed' WHERE last_extraction_status IS NULL;
ALTER TABLE {schema}.etl_watermarks ALTER COLUMN last_extraction_status SET NOT NULL;
ALTER TABLE {schema}.etl_extractions
    DROP COLUMN IF EXISTS last_extraction_status,
    DROP COLUMN IF EXISTS created_at,
    DROP COLUMN IF EXISTS updated_at,
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN extraction_id SET NOT NULL,
    ALTER COLUMN started_at SET NOT NULL,
    ALTER COLUMN finished_at SET NOT NULL,
    ALTER COLUMN finished_at SET DEFAULT clock_timestamp();
