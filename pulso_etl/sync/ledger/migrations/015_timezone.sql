-- By which time zone the days were counted at the last load. Loads of before counted by the default one.
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS timezone text;
