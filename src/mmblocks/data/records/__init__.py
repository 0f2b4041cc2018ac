"""Files of records: LLaVA JSON and JSON lines, tables, and the media that a record names."""
