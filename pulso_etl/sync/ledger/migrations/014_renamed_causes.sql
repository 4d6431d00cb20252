-- Incidents use the list of causes, in which two words have changed.
UPDATE {schema}.etl_alerts SET cause = 'shrink' WHERE cause = 'shrink_refused';
UPDATE {schema}.etl_alerts SET cause = 'internal' WHERE cause = 'run_failure';
