-- What deleted attempts add to the totals of the history.
CREATE TABLE IF NOT EXISTS {schema}.etl_totals (
    table_name text NOT NULL,
    status text NOT NULL CHECK (status IN ('success', 'failed')),
    error_cause text NOT NULL,
    attempts bigint NOT NULL,
    seconds double precision NOT NULL,
    metadata jsonb NOT NULL,
    PRIMARY KEY (table_name, status, error_cause)
);
