-- When each day of a table was last read from the source, and how many rows it held after that.
CREATE TABLE IF NOT EXISTS {schema}.etl_days (
    table_name text NOT NULL,
    day date NOT NULL,
    read_at timestamptz NOT NULL,
    loaded_at timestamptz NOT NULL,
    rows bigint NOT NULL,
    extraction_id text NOT NULL,
    PRIMARY KEY (table_name, day)
);
ALTER TABLE {schema}.etl_watermarks ADD COLUMN IF NOT EXISTS lookback_days integer;
