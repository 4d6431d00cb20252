-- Incidents, and the messages about them.
CREATE TABLE IF NOT EXISTS {schema}.etl_alerts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cause text NOT NULL,
    state text NOT NULL CHECK (state IN ('open', 'closed')),
    first_seen timestamptz NOT NULL,
    last_seen timestamptz NOT NULL,
    count integer NOT NULL,
    tables text[] NOT NULL,
    subjects jsonb NOT NULL,
    notified_at timestamptz,
    held_until timestamptz,
    closed_at timestamptz
);
CREATE TABLE IF NOT EXISTS {schema}.etl_alert_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id bigint NOT NULL REFERENCES {schema}.etl_alerts,
    stage text NOT NULL,
    severity text NOT NULL,
    title text NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL,
    pending text[] NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    retry_at timestamptz NOT NULL
);
