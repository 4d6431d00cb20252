-- The date until which the source may change a day, by the lookback at its reading.
ALTER TABLE {schema}.etl_days ADD COLUMN IF NOT EXISTS open_until date;
UPDATE {schema}.etl_days d SET open_until = d.day + w.lookback_days
FROM {schema}.etl_watermarks w WHERE w.table_name = d.table_name AND d.open_until IS NULL AND w.lookback_days IS NOT NULL;
UPDATE {schema}.etl_days SET open_until = '9999-12-31' WHERE open_until IS NULL;
-- The default is for rows of an earlier release: such a day is open until this release reads it.
ALTER TABLE {schema}.etl_days ALTER COLUMN open_until SET DEFAULT '9999-12-31', ALTER COLUMN open_until SET NOT NULL;
