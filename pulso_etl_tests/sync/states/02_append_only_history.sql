-- The ledger as the release ce178bb of 2026-11-24 made it.
CREATE TABLE IF NOT EXISTS etl_watermarks (
    table_name text PRIMARY KEY,
    last_extracted_at timestamptz,
    last_partition date,
    last_extraction_status text NOT NULL CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    recovery_attempts integer NOT NULL DEFAULT 0,
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
    metadata jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON etl_extractions (table_name, id DESC);

INSERT INTO etl_watermarks (table_name, last_extracted_at, last_partition, last_extraction_status, records_extracted,
    extraction_duration_seconds, error_message, extraction_id, recovery_attempts, metadata) VALUES
('dashboard_data', '2026-11-20 15:00:00+00', '2026-11-20', 'success', 1190, 7.5, NULL, 'run-2', 0,
    '{"attempt": 1, "partition_start": "2026-11-14", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:00+00:00", "rows_read": 1190}'),
('evolution_data', NULL, NULL, 'failed', NULL, 1.25, 'no such view', 'run-3', 1,
    '{"attempt": 1, "partition_start": "2026-11-18", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:08+00:00", "error_class": "SourceError"}'),
('operation_data', '2026-11-19 15:00:00+00', '2026-11-19', 'running', 48, 2.0, NULL, 'run-4', 0,
    '{"attempt": 2, "partition_start": "2026-11-19", "partition_end": "2026-11-20", "started_at": "2026-11-20T15:00:10+00:00"}');
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
