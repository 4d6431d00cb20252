-- A row is stored once, with the instants of its first and last sighting. Before, each load stored it again, with created_at.
ALTER TABLE {schema}.etl_quarantine
    ADD COLUMN IF NOT EXISTS copy integer,
    ADD COLUMN IF NOT EXISTS first_seen timestamptz,
    ADD COLUMN IF NOT EXISTS last_seen timestamptz;
UPDATE {schema}.etl_quarantine q SET copy = s.copy, first_seen = (to_jsonb(q)->>'created_at')::timestamptz FROM (
    SELECT id, row_number() OVER (
        PARTITION BY extraction_id, table_name, partition, column_name, reason, source_row::text ORDER BY id
    ) AS copy FROM {schema}.etl_quarantine
) s WHERE q.id = s.id AND q.copy IS NULL;
WITH seen AS (
    SELECT id, first_value(id) OVER w AS kept, last_value(first_seen) OVER w AS latest, last_value(extraction_id) OVER w AS run
    FROM {schema}.etl_quarantine WHERE last_seen IS NULL
    WINDOW w AS (PARTITION BY table_name, partition, column_name, reason, source_row::text, copy
        ORDER BY first_seen, id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
), gone AS (
    DELETE FROM {schema}.etl_quarantine q USING seen s WHERE q.id = s.id AND s.id <> s.kept
)
UPDATE {schema}.etl_quarantine q SET last_seen = s.latest, extraction_id = s.run FROM seen s WHERE q.id = s.id AND s.id = s.kept;
ALTER TABLE {schema}.etl_quarantine
    DROP COLUMN IF EXISTS created_at,
    ALTER COLUMN copy SET NOT NULL,
    ALTER COLUMN first_seen SET NOT NULL,
    ALTER COLUMN first_seen SET DEFAULT now(),
    ALTER COLUMN last_seen SET NOT NULL,
    ALTER COLUMN last_seen SET DEFAULT now();
CREATE UNIQUE INDEX IF NOT EXISTS etl_quarantine_row_idx
    ON {schema}.etl_quarantine (table_name, partition, column_name, reason, md5(source_row::text), copy) NULLS NOT DISTINCT;
