-- The ledger as the release e17033a of 2026-11-26 made it: the first with numbered files.
CREATE TABLE IF NOT EXISTS etl_watermarks (
    table_name text PRIMARY KEY,
    last_extracted_at timestamptz,
    last_partition date,
    last_extraction_status text NOT NULL CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    error_cause text,
    extraction_id text,
    recovery_attempts integer NOT NULL DEFAULT 0,
    data_version bigint NOT NULL DEFAULT 0,
    lookback_days integer,
    table_files text,
    looked_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS etl_extractions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    status text NOT NULL CHECK (status IN ('success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    error_cause text,
    metadata jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON etl_extractions (table_name, id DESC);
CREATE INDEX IF NOT EXISTS etl_extractions_finished_idx ON etl_extractions (table_name, finished_at);
CREATE TABLE IF NOT EXISTS etl_running (
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    attempt integer NOT NULL,
    partition_start date NOT NULL,
    partition_end date NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (table_name, extraction_id, attempt)
);
CREATE TABLE IF NOT EXISTS etl_days (
    table_name text NOT NULL,
    day date NOT NULL,
    read_at timestamptz NOT NULL,
    loaded_at timestamptz NOT NULL,
    rows bigint NOT NULL,
    found bigint,
    extraction_id text NOT NULL,
    open_until date NOT NULL DEFAULT '9999-12-31',
    PRIMARY KEY (table_name, day)
);
CREATE TABLE IF NOT EXISTS etl_alerts (
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
CREATE TABLE IF NOT EXISTS etl_alert_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id bigint NOT NULL REFERENCES etl_alerts,
    stage text NOT NULL,
    severity text NOT NULL,
    title text NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL,
    pending text[] NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    retry_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS etl_quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    extraction_id text NOT NULL,
    partition date,
    reason text NOT NULL,
    column_name text NOT NULL,
    source_row jsonb NOT NULL,
    copy integer NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS etl_quarantine_table_idx ON etl_quarantine (table_name, extraction_id);
CREATE UNIQUE INDEX etl_quarantine_row_idx ON etl_quarantine (table_name, partition, column_name, reason, md5(source_row::text), copy)
    NULLS NOT DISTINCT;
CREATE TABLE IF NOT EXISTS etl_refreshes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id text NOT NULL UNIQUE,
    fingerprint text NOT NULL,
    request jsonb NOT NULL,
    runs jsonb NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_refreshes_fingerprint_idx ON etl_refreshes (fingerprint, id DESC);

INSERT INTO etl_watermarks (table_name, last_extracted_at, last_partition, last_extraction_status, records_extracted,
    extraction_duration_seconds, error_message, extraction_id, recovery_attempts, metadata, data_version, lookback_days, table_files, looked_at,
    error_cause) VALUES
('dashboard_data', '2026-11-20 15:00:00+00', '2026-11-20', 'success', 1190, 7.5, NULL, 'run-2', 0,
    '{"attempt": 1, "partition_start": "2026-11-14", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:00+00:00", "rows_read": 1190}', 7, 7, NULL, NULL, NULL),
('evolution_data', NULL, NULL, 'failed', NULL, 1.25, 'no such view', 'run-3', 1,
    '{"attempt": 1, "partition_start": "2026-11-18", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:08+00:00", "error_class": "SourceError"}', 0, NULL, NULL, NULL, 'source_missing'),
('operation_data', '2026-11-19 15:00:00+00', '2026-11-19', 'running', 48, 2.0, NULL, 'run-4', 0,
    '{"attempt": 2, "partition_start": "2026-11-19", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:10+00:00"}', 3, 2, 'files', '2026-11-20 15:00:07+00', NULL);
INSERT INTO etl_extractions (table_name, extraction_id, attempt, partition_start, partition_end, status, records_extracted,
    extraction_duration_seconds, error_message, metadata, started_at, finished_at) VALUES
('operation_data', 'run-1', 1, '2026-11-18', '2026-11-19', 'success', 48, 2.0, NULL,
    '{"attempt": 1, "partition_start": "2026-11-18", "partition_end": "2026-11-19", "started_at": "2026-11-19T15:00:00+00:00", "rows_read": 48}', '2026-11-19 15:00:00+00', '2026-11-19 15:00:02+00'),
('dashboard_data', 'run-2', 1, '2026-11-14', '2026-11-20', 'success', 1190, 7.5, NULL,
    '{"attempt": 1, "partition_start": "2026-11-14", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:00+00:00", "rows_read": 1190}', '2026-11-20 15:00:00+00', '2026-11-20 15:00:07+00'),
('evolution_data', 'run-3', 1, '2026-11-18', '2026-11-20', 'failed', NULL, 1.25, 'no such view',
    '{"attempt": 1, "partition_start": "2026-11-18", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:08+00:00", "error_class": "SourceError"}', '2026-11-20 15:00:08+00', '2026-11-20 15:00:09+00'),
('operation_data', 'killed', 1, '2026-11-19', '2026-11-20', 'failed', NULL, NULL,
    'the attempt ended without a word: its process or its server session was killed', '{}',
    '2026-11-20 15:00:08+00', '2026-11-20 15:00:08+00');

INSERT INTO etl_running (table_name, extraction_id, attempt, partition_start, partition_end, started_at) VALUES
('operation_data', 'run-4', 2, '2026-11-19', '2026-11-20', '2026-11-20 15:00:10+00');

INSERT INTO etl_days (table_name, day, read_at, loaded_at, rows, extraction_id, found, open_until) VALUES
('dashboard_data', '2026-11-14', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-21'),
('dashboard_data', '2026-11-15', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-22'),
('dashboard_data', '2026-11-16', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-23'),
('dashboard_data', '2026-11-17', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-24'),
('dashboard_data', '2026-11-18', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-25'),
('dashboard_data', '2026-11-19', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-26'),
('dashboard_data', '2026-11-20', '2026-11-20 15:00:00+00', '2026-11-20 15:00:00+00', 170, 'run-2', NULL, '2026-11-27'),
('operation_data', '2026-11-18', '2026-11-19 15:00:00+00', '2026-11-19 15:00:00+00', 24, 'run-1', NULL, '2026-11-20'),
('operation_data', '2026-11-19', '2026-11-19 15:00:00+00', '2026-11-19 15:00:00+00', 24, 'run-1', NULL, '2026-11-21');

INSERT INTO etl_alerts (cause, state, first_seen, last_seen, count, tables, subjects, notified_at) VALUES
('source', 'open', '2026-11-20 15:00:09+00', '2026-11-20 15:00:09+00', 1, '{evolution_data}', '[]', '2026-11-20 15:01:00+00');
INSERT INTO etl_alert_messages (alert_id, stage, severity, title, body, created_at, pending, retry_at) VALUES
(1, 'opened', 'failure', 'evolution_data', 'no such view', '2026-11-20 15:01:00+00', '{mail}', '2026-11-20 15:01:00+00');

INSERT INTO etl_quarantine (table_name, extraction_id, partition, reason, column_name, source_row, copy, first_seen, last_seen) VALUES
('operation_data', 'run-1', '2026-11-18', 'null', 'canal', '{"hora": 1}', 1, '2026-11-18 15:00:00+00', '2026-11-19 15:00:00+00'),
('operation_data', 'run-0', '2026-11-18', 'null', 'canal', '{"hora": 1}', 2, '2026-11-18 15:00:00+00', '2026-11-18 15:00:00+00'),
('operation_data', 'run-0', '2026-11-18', 'null', 'canal', '{"hora": 2}', 1, '2026-11-18 15:00:00+00', '2026-11-18 15:00:00+00');

INSERT INTO etl_refreshes (pipeline_id, fingerprint, request, runs, requested_by, requested_at) VALUES
('p-1', 'f-1', '{"tables": ["operation_data"]}', '[{"run_id": "run-4"}]', 'ana', '2026-11-20 15:00:09+00');

CREATE TABLE IF NOT EXISTS etl_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO etl_migrations (number, name) VALUES
(1, 'watermarks'),
(2, 'append_only_history'),
(3, 'data_version'),
(4, 'running'),
(5, 'history_by_time'),
(6, 'days'),
(7, 'lost_rows'),
(8, 'open_until'),
(9, 'quarantine'),
(10, 'quarantine_once'),
(11, 'alerts'),
(12, 'refreshes'),
(13, 'cause'),
(14, 'renamed_causes');
