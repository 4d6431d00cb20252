-- What the source had of a day at its last load, and the rows that this load left in the table.
CREATE TABLE IF NOT EXISTS {schema}.etl_digests (
    table_name text NOT NULL,
    day date NOT NULL,
    made_by text NOT NULL,
    rows bigint NOT NULL,
    digest bytea NOT NULL,
    sample bytea NOT NULL,
    imprint text NOT NULL,
    PRIMARY KEY (table_name, day)
);
-- A sample is as random as it is short: compressing it takes time and saves nothing.
ALTER TABLE {schema}.etl_digests ALTER COLUMN sample SET STORAGE EXTERNAL;
