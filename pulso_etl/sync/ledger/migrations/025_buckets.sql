-- The digests of the parts of a day. They are as random as a sample.
ALTER TABLE {schema}.etl_digests ADD COLUMN IF NOT EXISTS buckets bytea NOT NULL DEFAULT '';
ALTER TABLE {schema}.etl_digests ALTER COLUMN buckets SET STORAGE EXTERNAL;
