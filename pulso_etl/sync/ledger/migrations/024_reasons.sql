-- Why a running attempt reads its days. An attempt that dies takes it along into the history.
ALTER TABLE {schema}.etl_running ADD COLUMN IF NOT EXISTS reasons jsonb;
