#!/bin/sh
# Runs once, on an empty volume: creates the role of Pulso ETL, the dashboard's database, and Dagster's own.
set -eu
psql --username "$POSTGRES_USER" --set ON_ERROR_STOP=1 --set password="$PULSO_DB_PASSWORD" <<'SQL'
CREATE ROLE pulso LOGIN PASSWORD :'password';
CREATE DATABASE dashboard OWNER pulso;
CREATE DATABASE dagster OWNER pulso;
REVOKE ALL ON DATABASE dagster FROM PUBLIC;
SQL
