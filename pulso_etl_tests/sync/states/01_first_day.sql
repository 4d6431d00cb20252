-- The ledger as the release 8f5f68a of 2026-11-24 made it.
CREATE TABLE IF NOT EXISTS etl_watermarks (table_name text PRIMARY KEY, last_extracted_at timestamptz,
    last_partition date, recovery_attempts integer NOT NULL DEFAULT 0,
    last_extraction_status text CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS etl_extractions (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, table_name text NOT NULL,
    attempt integer NOT NULL, partition_start date NOT NULL, partition_end date NOT NULL, finished_at timestamptz,
    last_extraction_status text CHECK (last_extraction_status IN ('running', 'success', 'failed')),
    records_extracted bigint,
    extraction_duration_seconds double precision,
    error_message text,
    extraction_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS etl_extractions_table_idx ON etl_extractions (table_name, id DESC);

INSERT INTO etl_watermarks (table_name, last_extracted_at, last_partition, last_extraction_status, records_extracted,
    extraction_duration_seconds, error_message, extraction_id, metadata) VALUES
('dashboard_data', '2026-11-20 15:00:07+00', '2026-11-20', 'success', 1190, 7.5, NULL, 'run-2', '{"rows_read": 1190}'),
('evolution_data', NULL, NULL, 'failed', NULL, 1.25, 'no such view', 'run-3', '{}'),
('operation_data', '2026-11-19 15:00:02+00', '2026-11-19', 'running', 48, 2.0, NULL, 'run-4', '{"rows_read": 48}');
INSERT INTO etl_extractions (table_name, attempt, partition_start, partition_end, finished_at, last_extraction_status,
    records_extracted, extraction_duration_seconds, error_message, extraction_id, metadata, created_at, updated_at) VALUES
('operation_data', 1, '2026-11-18', '2026-11-19', '2026-11-19 15:00:02+00', 'success', 48, 2.0, NULL, 'run-1',
    '{"rows_read": 48}', '2026-11-19 15:00:00+00', '2026-11-19 15:00:02+00'),
('dashboard_data', 1, '2026-11-14', '2026-11-20', '2026-11-20 15:00:07+00', 'success', 1190, 7.5, NULL, 'run-2',
    '{"rows_read": 1190}', '2026-11-20 15:00:00+00', '2026-11-20 15:00:07+00'),
('evolution_data', 1, '2026-11-18', '2026-11-20', '2026-11-20 15:00:09+00', 'failed', NULL, 1.25, 'no such view', 'run-3',
    '{}', '2026-11-20 15:00:08+00', '2026-11-20 15:00:09+00'),
('operation_data', 1, '2026-11-19', '2026-11-20', NULL, 'running', NULL, NULL, NULL, 'killed',
    '{}', '2026-11-20 15:00:08+00', '2026-11-20 15:00:08+00'),
('operation_data', 2, '2026-11-19', '2026-11-20', NULL, 'running', NULL, NULL, NULL, 'run-4',
    '{}', '2026-11-20 15:00:10+00', '2026-11-20 15:00:10+00');
