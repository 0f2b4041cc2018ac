"""What is in data: figures of records, faults found before training, pictures and pages of single records."""
