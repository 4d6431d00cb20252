"""BigQuery: run a table's query over a range of days and stream the result as Arrow."""
